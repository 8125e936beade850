"""Which series and labels a PromQL expression asks for. Reads what the dashboard and the alerts use, not all of the language."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STRINGS = r'"(?:[^"\\]|\\.)*"'
_SELECTOR = re.compile(r"\b((?:aiasst|process)_[a-z_]+|up)\b(?:\s*\{((?:[^{}\"]|" + _STRINGS + r")*)\})?")
_MATCHER = re.compile(r"([a-z_]+)\s*(=~|!~|!=|=)\s*(" + _STRINGS + ")")
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Selector:
    """A series by name, with (label, value) of its matchers; alternatives of a pattern are matchers each."""

    name: str
    matchers: tuple[tuple[str, str], ...]


def selectors(expression: str) -> list[Selector]:
    """The series that it asks for."""
    return [
        Selector(name, tuple((label, value) for label, _, text in _MATCHER.findall(inside) for value in _values(text)))
        for name, inside in _SELECTOR.findall(expression)
    ]


def grouping_labels(expression: str) -> set[str]:
    """The labels that it groups or joins by."""
    inside = ",".join(_GROUPING.findall(expression))
    return {label.strip() for label in inside.split(",") if label.strip()}


def _values(text: str) -> list[str]:
    return text[1:-1].split("|")
