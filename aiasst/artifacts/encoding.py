"""How an encoder's answer becomes what people ask for: pooling, prompts, labels, as the checkpoint's files say. Computes nothing.

    modules.json, 1_Pooling/config.json                       pooling and normalization (sentence-transformers)
    sentence_bert_config.json, tokenizer_config.json          tokens that are read
    config_sentence_transformers.json                         prompts
    config.json                                               labels of a classifier

`convert` reads them once and records what they say in the manifest; folders without such a record are read from their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from aiasst.artifacts.document import Document, read_json
from aiasst.errors import ArtifactError

PoolingMode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Activation = Literal["softmax", "sigmoid", "identity"]

_HINT = "copy the file again from the checkpoint"
_MODULES_KNOWN = ("Transformer", "Pooling", "Normalize")
_FLAGS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
_PROBLEMS: Mapping[str, Activation] = {
    "regression": "identity", "single_label_classification": "softmax", "multi_label_classification": "sigmoid",
}  # fmt: skip


class Encoding(Document):
    """What stands between a text and an encoder, and between its hidden states or logits and an answer."""

    pooling: tuple[PoolingMode, ...] = ("mean",)
    """How hidden states become one vector; several are put side by side."""
    normalize: bool = False
    """Whether that vector gets length 1."""
    max_tokens: int | None = None
    """Tokens of a text that are read; None: as many as the context has."""
    lower_case: bool = False
    strip: bool = False
    """Whether white space around a text is left out, as sentence-transformers does."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Name → what is put before a text."""
    default_prompt: str | None = None
    """Name of the prompt that every text gets for which none is chosen."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's logits; empty of a model that has none."""
    activation: Activation = "softmax"
    """What turns a classifier's logits into scores."""
    beyond: str = ""
    """What the files declare and nobody here computes: vectors without it show what rounding did, and are no answer."""

    def prompted(self, text: str, prompt: str | None = None) -> str:
        """`text` behind the prompt of that name, or behind the default one, as the model reads it."""
        name = prompt if prompt is not None else self.default_prompt
        text = self.prompts[name] + text if name is not None and name in self.prompts else text
        text = text.strip() if self.strip else text
        return text.lower() if self.lower_case else text


def read_encoding(folder: Path) -> Encoding:
    """What the files of a checkpoint or model folder declare.

    Raises:
        ArtifactError: one of them is broken.
    """
    modules = [str(module.get("type", "")).rpartition(".")[2] for module in _rows(folder / "modules.json")]
    transformer = _object(folder / "sentence_bert_config.json")
    pooling = _object(folder / "1_Pooling" / "config.json")
    declared = _declared_modes(pooling)
    known = get_args(PoolingMode)
    foreign = [f"a {module} module" for module in modules if module not in _MODULES_KNOWN]
    foreign += [f"the pooling '{mode}'" for mode in declared if mode not in known]
    prompts, default = _prompts(_object(folder / "config_sentence_transformers.json"))
    if prompts and pooling.get("include_prompt") is False:
        foreign.append("pooling without the prompt")
    config = _object(folder / "config.json")
    labels = _labels(config)
    activation, strange = _activation(config, len(labels))
    return Encoding(
        pooling=tuple(mode for mode in declared if mode in known) or ("mean",),
        normalize="Normalize" in modules,
        max_tokens=_longest(transformer, folder) if modules else _positive(transformer.get("max_seq_length")),
        lower_case=transformer.get("do_lower_case") is True,
        strip=bool(modules),
        prompts=prompts,
        default_prompt=default,
        labels=labels,
        activation=activation,
        beyond=" and ".join(foreign + strange),
    )


def _declared_modes(pooling: Mapping[str, Any]) -> tuple[Any, ...]:
    named = pooling.get("pooling_mode")
    if isinstance(named, str):
        return tuple(named.split("+"))
    if isinstance(named, list):
        return tuple(str(mode) for mode in named)
    return tuple(mode for flag, mode in _FLAGS.items() if pooling.get(flag) is True)


def _longest(transformer: Mapping[str, Any], folder: Path) -> int | None:
    """sentence-transformers falls back on the tokenizer's own limit."""
    own = _positive(transformer.get("max_seq_length"))
    return own or _positive(_object(folder / "tokenizer_config.json").get("model_max_length"))


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _prompts(config: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """Prompts that say something, by name, and the name of the default one."""
    given = config.get("prompts")
    prompts = {str(k): v for k, v in given.items() if isinstance(v, str) and v} if isinstance(given, dict) else {}
    default = config.get("default_prompt_name")
    return prompts, default if isinstance(default, str) and default in prompts else None


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names by number; of a configuration that has none, nothing is told."""
    named = config.get("id2label")
    if not isinstance(named, dict):
        return ()
    by_number = {int(number): str(name) for number, name in named.items() if str(number).isdecimal()}
    if sorted(by_number) != list(range(len(by_number))):
        raise ArtifactError("config.json numbers its labels with gaps (id2label)", _HINT)
    return tuple(by_number[number] for number in range(len(by_number)))


def _activation(config: Mapping[str, Any], labels: int) -> tuple[Activation, list[str]]:
    """What a classifier's logits go through, and what is asked for that nobody here computes.

    A cross-encoder names its own; else the kind of problem decides, and a single logit without one is a sigmoid's (both as
    sentence-transformers and the pipelines of transformers have it).
    """
    cross = config.get("sentence_transformers")
    named = cross.get("activation_fn") if isinstance(cross, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    if isinstance(named, str):
        short = named.rpartition(".")[2]
        if short in _ACTIVATIONS:
            return _ACTIVATIONS[short], []
        return "identity", [f"the activation '{short}'"]
    problem = config.get("problem_type")
    if isinstance(problem, str) and problem in _PROBLEMS and not (labels == 1 and problem.startswith("single")):
        return _PROBLEMS[problem], []
    return ("sigmoid" if labels == 1 else "softmax"), []


def _object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path, "configuration", _HINT)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds no JSON object", _HINT)
    return data


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    data = read_json(path, "list of modules", _HINT)
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ArtifactError(f"{path} holds no list of modules", _HINT)
    return data
