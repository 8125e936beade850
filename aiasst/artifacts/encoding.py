"""How an encoder's answer becomes what people ask for: pooling, prompts, labels, as the checkpoint's files say. Computes nothing.

    modules.json, 1_Pooling/config.json, 2_Dense/config.json  pooling, projections and normalization (sentence-transformers)
    sentence_bert_config.json, tokenizer_config.json          tokens that are read
    config_sentence_transformers.json                         prompts, activation of a cross-encoder
    config.json                                               labels of a classifier, its activation

`convert` reads them once and records what they say in the manifest; folders without such a record are read from their files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from aiasst.artifacts.document import Document, read_json
from aiasst.errors import ArtifactError

PoolingMode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Activation = Literal["softmax", "sigmoid", "identity"]
ProjectionActivation = Literal["identity", "tanh", "sigmoid", "relu", "gelu", "silu"]

_Known = TypeVar("_Known")
_HINT = "copy the file again from the checkpoint"
MODULES_NAME = "modules.json"
MODULE_FILES = ("config.json", "weight.npy", "bias.npy", "residual.npy")
"""What the folder of a module holds in a model folder."""
_MODULE_FOLDER = re.compile(r"\w[\w.-]*", re.ASCII)
_DOES_NOTHING = ("Transformer", "Pooling", "Dropout")
"""Modules that change nothing once pooling is known: a dropout rests when nobody trains."""
_VECTOR = "sentence_embedding"
"""What sentence-transformers calls the vector of a text among all that its modules hand on."""
_FLAGS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
_PROJECTION_ACTIVATIONS: Mapping[str, ProjectionActivation] = {
    "Identity": "identity", "Tanh": "tanh", "Sigmoid": "sigmoid", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu",
}  # fmt: skip
_PROBLEMS: Mapping[str, Activation] = {
    "regression": "identity", "single_label_classification": "softmax", "multi_label_classification": "sigmoid",
}  # fmt: skip


class Projection(Document):
    """A Dense module of sentence-transformers: activation(vector · weightᵀ + bias), the vector added again where it is residual.

    Its numbers lie in the model folder as `folder`/weight.npy [outputs, inputs], bias.npy [outputs] and, where a residual
    changes its size, residual.npy [outputs, inputs]; all float32.
    """

    folder: str = Field(pattern=r"^\w[\w.-]*$")
    inputs: int = Field(gt=0)
    outputs: int = Field(gt=0)
    bias: bool = True
    activation: ProjectionActivation = "tanh"
    residual: bool = False
    unit_input: bool = False
    """Whether what goes in gets length 1 first."""

    @property
    def files(self) -> dict[str, tuple[int, ...]]:
        """Name of each file in its folder → shape of what it holds."""
        shapes: dict[str, tuple[int, ...]] = {"weight.npy": (self.outputs, self.inputs)}
        if self.bias:
            shapes["bias.npy"] = (self.outputs,)
        if self.residual and self.inputs != self.outputs:
            shapes["residual.npy"] = (self.outputs, self.inputs)
        return shapes


class Encoding(Document):
    """What stands between a text and an encoder, and between its hidden states or logits and an answer."""

    pooling: tuple[PoolingMode, ...] = ("mean",)
    """How hidden states become one vector; several are put side by side."""
    projections: tuple[Projection, ...] = ()
    """What that vector goes through, in this order."""
    normalize: bool = False
    """Whether it gets length 1 in the end."""
    max_tokens: int | None = None
    """Tokens of a text that are read; None: as many as the context has."""
    lower_case: bool = False
    strip: bool = False
    """Whether white space around a text is left out: by sentence-transformers before version 6, and in folders of its time."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Name → what is put before a text."""
    default_prompt: str | None = None
    """Name of the prompt that every text gets for which none is chosen."""
    pools_prompt: bool = True
    """Whether the tokens of the prompt are pooled with those of the text."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's logits; empty of a model that has none."""
    activation: Activation = "softmax"
    """What turns a classifier's logits into scores."""
    beyond: str = ""
    """What the files declare and nobody here computes: vectors without it show what rounding did, and are no answer."""

    @model_serializer(mode="wrap")
    def _plain_without_extras(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A model without projections is written, and identified, as it was before there were any.
        data: dict[str, Any] = handler(self)
        if not self.projections:
            del data["projections"]
        if self.pools_prompt:
            del data["pools_prompt"]
        return data

    def prompted(self, text: str, prompt: str | None = None) -> str:
        """`text` behind the prompt of that name, or behind the default one, as the model reads it."""
        text = self.prompt_text(prompt) + text
        text = text.strip() if self.strip else text
        return text.lower() if self.lower_case else text

    def prompt_text(self, prompt: str | None = None) -> str:
        """What is put before a text for which the prompt of that name was chosen, or none."""
        name = prompt if prompt is not None else self.default_prompt
        return self.prompts.get(name, "") if name is not None else ""


def read_encoding(folder: Path) -> Encoding:
    """What the files of a checkpoint or model folder declare.

    Raises:
        ArtifactError: one of them is broken.
    """
    modules = read_modules(folder)
    kinds = [module.kind for module in modules]
    transformer = _object(folder / "sentence_bert_config.json")
    placed = (module.config for module in modules if module.kind == "Pooling" and module.folder)
    pooling = next(placed, None) or _object(folder / "1_Pooling" / "config.json")
    declared = _declared_modes(pooling)
    known = get_args(PoolingMode)
    projections, normalize, foreign = _behind_pooling(modules)
    foreign += [f"the pooling '{mode}'" for mode in declared if mode not in known]
    beside = _object(folder / "config_sentence_transformers.json")
    prompts, default = _prompts(beside)
    config = _object(folder / "config.json")
    labels = _labels(config)
    activation, strange = _activation(beside, config, len(labels))
    return Encoding(
        pooling=tuple(mode for mode in declared if mode in known) or ("mean",),
        projections=tuple(projections),
        normalize=normalize,
        max_tokens=_longest(transformer, folder) if kinds else _positive(transformer.get("max_seq_length")),
        lower_case=transformer.get("do_lower_case") is True,
        prompts=prompts,
        default_prompt=default,
        pools_prompt=not prompts or pooling.get("include_prompt") is not False,
        labels=labels,
        activation=activation,
        beyond=" and ".join(foreign + strange),
    )


@dataclass(frozen=True)
class Module:
    """A row of modules.json."""

    kind: str
    """Its class, without the package."""
    folder: str
    """Where its files lie; empty for the checkpoint's own folder."""
    config: Mapping[str, Any]
    """What its config.json says; nothing where it has none, or lies in the checkpoint's own folder."""


def read_modules(folder: Path) -> list[Module]:
    """What sentence-transformers does with a text, in this order; nothing of a checkpoint that is none of theirs.

    Raises:
        ArtifactError: a file is broken, or a module lies outside the folder.
    """
    modules = []
    for row in _rows(folder / MODULES_NAME):
        place = row.get("path") or ""
        if place and not (isinstance(place, str) and _MODULE_FOLDER.fullmatch(place)):
            raise ArtifactError(f"{MODULES_NAME} names the folder '{place}', which is no folder beside it", _HINT)
        config = _object(folder / place / "config.json") if place else {}
        modules.append(Module(str(row.get("type", "")).rpartition(".")[2], place, config))
    return modules


def embeds(folder: Path) -> bool:
    """Whether the files declare how texts become vectors, whatever head the weights were trained with."""
    return any(module.kind == "Pooling" for module in read_modules(folder))


def _behind_pooling(modules: Sequence[Module]) -> tuple[list[Projection], bool, list[str]]:
    """Projections in their order, whether the vector gets length 1 in the end, and what nobody here computes."""
    projections: list[Projection] = []
    foreign: list[str] = []
    unit = False
    for module in modules:
        between = {module.config.get(key) or _VECTOR for key in ("module_input_name", "module_output_name")}
        if module.kind in ("Normalize", "Dense") and between != {_VECTOR}:
            foreign.append(f"a {module.kind} module on something else than the vector of a text")
        elif module.kind == "Normalize":
            unit = True
        elif module.kind == "Dense":
            made = _projection(module, unit)
            projections += [made] if isinstance(made, Projection) else []
            foreign += [made] if isinstance(made, str) else []
            unit = False
        elif module.kind not in _DOES_NOTHING:
            foreign.append(f"a {module.kind} module")
    return projections, unit, foreign


def _projection(module: Module, unit_input: bool) -> Projection | str:
    """What a Dense module does; a word on what is foreign where nobody here does it."""
    named = module.config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = _of_torch(named, _PROJECTION_ACTIVATIONS)
    if activation is None:
        return f"a Dense module with the activation '{str(named).rpartition('.')[2]}'"
    return Projection.parse(
        {
            "folder": module.folder,
            "inputs": module.config.get("in_features"),
            "outputs": module.config.get("out_features"),
            "bias": module.config.get("bias", True),
            "activation": activation,
            "residual": module.config.get("use_residual", False),
            "unit_input": unit_input,
        },
        f"{module.folder or '.'}/config.json",
    )


def _of_torch(named: object, known: Mapping[str, _Known]) -> _Known | None:
    """The function of torch that a checkpoint names, looked up and never imported; None of another's, and of one unknown."""
    if not isinstance(named, str) or not named.startswith("torch."):
        return None
    return known.get(named.rpartition(".")[2])


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


def _activation(beside: Mapping[str, Any], config: Mapping[str, Any], labels: int) -> tuple[Activation, list[str]]:
    """What a classifier's logits go through, and what is asked for that nobody here computes.

    A cross-encoder names its own (`beside`: config_sentence_transformers.json, before it config.json); else the kind of
    problem decides, and a single logit without one is a sigmoid's (both as sentence-transformers and the pipelines of
    transformers have it).
    """
    cross = config.get("sentence_transformers")
    named = beside.get("activation_fn") or (cross.get("activation_fn") if isinstance(cross, dict) else None)
    named = named or config.get("sbert_ce_default_activation_function")
    if isinstance(named, str):
        known = _of_torch(named, _ACTIVATIONS)
        return (known, []) if known is not None else ("identity", [f"the activation '{named.rpartition('.')[2]}'"])
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
