"""The vectors that an encoder makes of texts, and how near they are to another's. Knows no task and writes nothing.

A text's vector is what the checkpoint says it is: the hidden states of its tokens pooled as 1_Pooling/config.json declares, and
normalized where modules.json says so; their mean where neither file is there. A classifier's vector is its logits. Texts are run
one at a time, because activations that are quantized at run time would otherwise depend on a text's neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts import signature
from aiasst.artifacts.document import read_json
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.session import GraphSession, SessionSettings
from aiasst.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_CONFIG_HINT = "copy the file again from the checkpoint"
_MODULES_KNOWN = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceRules:
    """How a checkpoint makes one vector of a text."""

    modes: tuple[str, ...] = ("mean",)
    """Keys of `POOLINGS`; several are put side by side."""
    normalize: bool = False
    longest: int | None = None
    """Tokens of a text that are read."""
    lower_case: bool = False
    beyond: str = ""
    """What the files declare and nobody here computes. Vectors without it show what rounding did, and must not be scored."""


def _mean(hidden: Floats) -> Floats:
    pooled: Floats = hidden.mean(axis=0)
    return pooled


def _weighted_mean(hidden: Floats) -> Floats:
    """Later tokens weigh more (SGPT, Muennighoff 2022)."""
    weights = np.arange(1, len(hidden) + 1, dtype=np.float32)[:, None]
    pooled: Floats = np.sum(hidden * weights, axis=0) / weights.sum()
    return pooled


def _mean_sqrt_len(hidden: Floats) -> Floats:
    pooled: Floats = hidden.sum(axis=0) / np.sqrt(np.float32(len(hidden)))
    return pooled


def _max(hidden: Floats) -> Floats:
    pooled: Floats = hidden.max(axis=0)
    return pooled


def _first(hidden: Floats) -> Floats:
    pooled: Floats = hidden[0]
    return pooled


def _last(hidden: Floats) -> Floats:
    pooled: Floats = hidden[-1]
    return pooled


POOLINGS: Mapping[str, Callable[[Floats], Floats]] = {
    "mean": _mean, "cls": _first, "max": _max, "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean, "lasttoken": _last,
}  # fmt: skip
"""Name, as sentence-transformers has it → pooling of hidden states [tokens, hidden] into [hidden]."""
_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


def read_rules(folder: Path) -> SentenceRules:
    """The rules that the files of sentence-transformers in `folder` declare. Raises ArtifactError where one is broken."""
    modules = [str(module.get("type", "")).rpartition(".")[2] for module in _rows(folder / "modules.json")]
    transformer = _object(folder / "sentence_bert_config.json")
    declared = _declared_modes(_object(folder / "1_Pooling" / "config.json"))
    modes = tuple(mode for mode in declared if mode in POOLINGS)
    foreign = [f"a {module} module" for module in modules if module not in _MODULES_KNOWN]
    foreign += [f"the pooling '{mode}'" for mode in declared if mode not in POOLINGS]
    longest = transformer.get("max_seq_length")
    return SentenceRules(
        modes=modes or ("mean",),
        normalize="Normalize" in modules,
        longest=longest if isinstance(longest, int) and longest > 0 else None,
        lower_case=transformer.get("do_lower_case") is True,
        beyond=" and ".join(foreign),
    )


def _declared_modes(pooling: Mapping[str, Any]) -> tuple[str, ...]:
    named = pooling.get("pooling_mode")
    if isinstance(named, str):
        return tuple(named.split("+"))
    return tuple(mode for flag, mode in _FLAGS.items() if pooling.get(flag) is True)


def _object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path, "configuration", _CONFIG_HINT)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds no JSON object", _CONFIG_HINT)
    return data


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    data = read_json(path, "list of modules", _CONFIG_HINT)
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ArtifactError(f"{path} holds no list of modules", _CONFIG_HINT)
    return data


class TextEncoder:
    """An encoder that turns texts into vectors."""

    def __init__(
        self, session: GraphSession, tokenizer: Tokenizer, rules: SentenceRules, *, context_length: int
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.rules = rules
        self.longest = min(rules.longest or context_length, context_length)
        self._known: dict[bytes, Floats] = {}
        names = session.output_names
        self._output = next(
            (name for name in (signature.LAST_HIDDEN_STATE, signature.LOGITS) if name in names), names[0]
        )

    @classmethod
    def open(cls, folder: ModelFolder, settings: SessionSettings | None = None) -> TextEncoder:
        """Open the encoder of a model folder.

        Raises:
            ArtifactError: it is no encoder of text, or has no tokenizer.
            ResourceError: the execution provider does not load, or memory is short.
        """
        shape = folder.manifest.shape
        if shape is None:
            raise ArtifactError(
                f"{folder.path} holds a foreign graph, no encoder of text", "convert a checkpoint first"
            )
        rules, tokenizer = read_rules(folder.path), Tokenizer.load(folder.path)
        session = GraphSession.open(folder.graph, settings)
        known = {signature.INPUT_IDS, signature.ATTENTION_MASK, signature.TOKEN_TYPE_IDS}
        if foreign := set(session.input_names) - known:
            raise ArtifactError(
                f"{folder.path} wants more than a text: {', '.join(sorted(foreign))}", "measure an encoder of text"
            )
        return cls(session, tokenizer, rules, context_length=shape.context_length)

    def encode(self, text: str) -> Ids:
        """Token ids of `text`, int64 [tokens], cut to what the model reads; a special token at the end stays there."""
        encoding = self.tokenizer.backend.encode(text.lower() if self.rules.lower_case else text)
        ids: list[int] = encoding.ids
        if len(ids) > self.longest:
            end = ids[-1:] if encoding.special_tokens_mask[-1] else []
            ids = ids[: self.longest - len(end)] + end
        return np.asarray(ids, np.int64)

    def vector(self, ids: Ids) -> Floats:
        """The vector of one text, float32 [size]: pooled hidden states, or logits as they are.

        Raises:
            ArtifactError: the graph fails.
        """
        batch = ids[None]
        feeds = {
            signature.INPUT_IDS: batch,
            signature.ATTENTION_MASK: np.ones_like(batch),
            signature.TOKEN_TYPE_IDS: np.zeros_like(batch),
        }
        answer = self.session.run({wanted: feeds[wanted] for wanted in self.session.input_names}, [self._output])[0][0]
        states: Floats = answer.astype(np.float32, copy=False)
        if states.ndim == 1:
            return states
        pooled: Floats = np.concatenate([POOLINGS[mode](states) for mode in self.rules.modes])
        length = np.linalg.norm(pooled)
        if self.rules.normalize and length > 0:
            pooled /= length
        return pooled

    def vectors(self, texts: Sequence[Ids], progress: ProgressFn = silent, stage: str = "evaluate") -> list[Floats]:
        """The vectors of many texts; a text that was met before is not run again."""
        found: list[Floats] = []
        for index, ids in enumerate(texts):
            progress(Progress(stage, index, len(texts)))
            key = ids.tobytes()
            if key not in self._known:
                self._known[key] = self.vector(ids)
            found.append(self._known[key])
        progress(Progress(stage, len(texts), len(texts)))
        return found


def cosines(first: Sequence[Floats], second: Sequence[Floats]) -> Doubles:
    """Cosine of each pair of vectors, float64 [texts]; two vectors of zeros are the same, one is unlike everything."""
    found = []
    for a, b in zip(first, second, strict=True):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        lengths = float(np.linalg.norm(wide_a) * np.linalg.norm(wide_b))
        found.append(float(wide_a @ wide_b) / lengths if lengths else float(not wide_a.any() and not wide_b.any()))
    return np.clip(np.asarray(found, np.float64), -1.0, 1.0)
