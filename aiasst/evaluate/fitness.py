"""Whether a model, and a pair of them, can be measured at all. Refuses before any graph is opened; measures nothing."""

from __future__ import annotations

import math

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError, UsageError
from aiasst.tokenizer import Tokenizer

_TOKENIZER = "tokenizer.json"
_ORIGINAL_HINT = "compare a model with the one that it was made from"


def why_unmeasurable(folder: ModelFolder) -> str:
    """Why no card can be measured for a folder; "" where one can."""
    if folder.manifest.shape is None:
        return "it holds a foreign graph, of which only the weights are known"
    if not (folder.path / _TOKENIZER).is_file():
        return f"it has no {_TOKENIZER} to read a text with"
    return ""


def refuse_unmeasurable(folder: ModelFolder) -> None:
    """Raise ArtifactError where no card can be measured for `folder`."""
    if reason := why_unmeasurable(folder):
        raise ArtifactError(f"{folder.path} cannot be measured: {reason}", "convert a checkpoint first: aiasst convert")


def refuse_other_model(folder: ModelFolder, against: ModelFolder) -> None:
    """Raise UsageError where `against` does another task than `folder`, or reads a text as other tokens.

    Raises:
        ArtifactError: one of them cannot be measured.
    """
    ours, theirs = folder.manifest, against.manifest
    if ours.task != theirs.task:
        raise UsageError(f"{folder.path} is for {ours.task}, {against.path} for {theirs.task}", _ORIGINAL_HINT)
    if ours.shape and theirs.shape and ours.shape.vocab_size != theirs.shape.vocab_size:
        raise UsageError(
            f"{folder.path} has a vocabulary of {ours.shape.vocab_size} tokens, "
            f"{against.path} one of {theirs.shape.vocab_size}",
            _ORIGINAL_HINT,
        )
    if _vocabulary(folder) != _vocabulary(against):
        raise UsageError(f"the tokenizers of {folder.path} and {against.path} differ", _ORIGINAL_HINT)


def finite(value: float, folder: ModelFolder) -> float:
    """`value`. Raises ArtifactError where it is no number: the model's answers are not numbers either."""
    if not math.isfinite(value):
        raise ArtifactError(
            f"{folder.path} gives answers that are no numbers (infinite, or not a number)",
            "quantize the original again, with a recipe of more bits",
        )
    return value


def _vocabulary(folder: ModelFolder) -> dict[str, int]:
    found: dict[str, int] = Tokenizer.load(folder.path).backend.get_vocab()
    return found
