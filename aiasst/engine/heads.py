"""What an encoder's output means: vectors, labels, labels of tokens, fills of a mask, relevance. Arrays in, answers out; knows no
session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.encoding import Activation, Encoding
from aiasst.runtime.projection import ACTIVATIONS, TextVectors

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vector:
    """A text as a point."""

    values: Floats
    """float32 [size]"""


@dataclass(frozen=True)
class Label:
    """A name, and how sure the model is of it."""

    label: str
    score: float


@dataclass(frozen=True)
class Labels:
    """The labels of a text, the likeliest first."""

    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Relevance:
    """How well the second text answers the first, or the one value of a regression."""

    score: float


@dataclass(frozen=True)
class TokenLabel:
    """The label of one token, and where that stands in the text."""

    start: int
    end: int
    text: str
    label: str
    score: float


@dataclass(frozen=True)
class TokenLabels:
    """The labels of the tokens of a text, in their order."""

    tokens: tuple[TokenLabel, ...]


@dataclass(frozen=True)
class Fills:
    """For each mask of a text the tokens that fit there, the likeliest first."""

    masks: tuple[tuple[Label, ...], ...]


Result = Vector | Labels | Relevance | TokenLabels | Fills


def vectors(hidden: Floats, mask: Floats, made: TextVectors) -> list[Vector]:
    """Hidden states float32 [texts, tokens, size] and their mask [texts, tokens] to a vector a text."""
    # Copies, so that a row that is kept does not keep its batch.
    return [Vector(row.copy()) for row in made(hidden, mask)]


def activated(logits: Floats, activation: Activation) -> Floats:
    """Scores along the last axis; float32 of the same shape."""
    if activation != "softmax":
        return ACTIVATIONS[activation](logits)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    softmax: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return softmax


def relevance(logits: Floats, encoding: Encoding) -> list[Relevance]:
    """Logits float32 [texts, 1] to a score a text."""
    return [Relevance(float(score)) for score in activated(logits, encoding.activation)[:, 0]]


def labels(logits: Floats, encoding: Encoding, top: int | None) -> list[Labels]:
    """Logits float32 [texts, labels] to the `top` labels of each text (None: all)."""
    names = label_names(encoding, logits.shape[-1])
    scores = activated(logits, encoding.activation)
    return [Labels(tuple(Label(names[i], float(row[i])) for i in _likeliest(row, top))) for row in scores]


def token_labels(
    logits: Floats, offsets: Sequence[tuple[int, int]], special: Sequence[bool], text: str, encoding: Encoding
) -> TokenLabels:
    """Logits float32 [tokens, labels] of one text to a label for each token that is not special."""
    names, scores = label_names(encoding, logits.shape[-1]), activated(logits, "softmax")
    found = []
    for row, (start, end), added in zip(scores, offsets, special, strict=True):
        if not added:
            best = int(row.argmax())
            found.append(TokenLabel(start, end, text[start:end], names[best], float(row[best])))
    return TokenLabels(tuple(found))


def fills(logits: Floats, word: Callable[[int], str], top: int) -> tuple[Label, ...]:
    """Logits float32 [vocabulary] at one mask to the `top` tokens; `word` gives the text of a token."""
    scores = activated(logits, "softmax")
    return tuple(Label(word(i), float(scores[i])) for i in _likeliest(scores, top))


def label_names(encoding: Encoding, count: int) -> Sequence[str]:
    """Names of `count` logits; numbered ones where the checkpoint names others, or none."""
    return encoding.labels if len(encoding.labels) == count else [f"LABEL_{index}" for index in range(count)]


def _likeliest(scores: Floats, top: int | None) -> list[int]:
    order: list[int] = np.argsort(-scores, kind="stable")[:top].tolist()
    return order
