"""A screen that remembers and a person who types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from aiasst.errors import AiasstError


@dataclass
class RecordingScreen:
    answers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[dict[str, str]] = field(default_factory=list)
    errors: list[AiasstError] = field(default_factory=list)
    on_answer: Callable[[], None] = lambda: None

    def answer(self, text: str) -> None:
        self.answers.append(text)
        self.on_answer()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        self.tables.append(dict(rows))

    def error(self, failure: AiasstError) -> None:
        self.errors.append(failure)

    def width(self) -> int:
        return 1000

    @property
    def shown(self) -> str:
        return "".join(self.answers)


@dataclass
class Typist:
    """Gives lines; an exception class among them is raised (a key that was pressed)."""

    script: list[str | type[BaseException]]
    prompts: list[str] = field(default_factory=list)

    def __call__(self, prompt: str) -> str | None:
        self.prompts.append(prompt)
        if not self.script:
            return None
        following = self.script.pop(0)
        if not isinstance(following, str):
            raise following
        return following


@pytest.fixture
def screen() -> RecordingScreen:
    return RecordingScreen()


@pytest.fixture
def typed() -> Callable[..., Typist]:
    return lambda *script: Typist(list(script))
