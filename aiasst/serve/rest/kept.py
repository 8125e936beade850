"""Responses that may be gone on with, in bounded memory: the oldest are forgotten first. Knows no route and writes no file."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from aiasst.tokenizer import Message

MOST_RESPONSES = 1000
MOST_CHARACTERS = 32_000_000


@dataclass(frozen=True)
class KeptResponse:
    """A response, and the conversation up to its end without instructions."""

    document: dict[str, Any]
    messages: tuple[Message, ...]

    @property
    def characters(self) -> int:
        """What it takes, about."""
        return sum(len(message.content) for message in self.messages)


class Kept:
    """Responses by id; each is seen by the caller alone who asked for it."""

    def __init__(self, most: int = MOST_RESPONSES, most_characters: int = MOST_CHARACTERS) -> None:
        self._most, self._most_characters = most, most_characters
        self._responses: OrderedDict[tuple[str, str], KeptResponse] = OrderedDict()
        self._characters = 0

    def put(self, caller: str, response_id: str, response: KeptResponse) -> None:
        """Keep one more, and forget the oldest where there are too many."""
        self._responses[caller, response_id] = response
        self._characters += response.characters
        while len(self._responses) > self._most or self._characters > self._most_characters:
            _, oldest = self._responses.popitem(last=False)
            self._characters -= oldest.characters

    def get(self, caller: str, response_id: str) -> KeptResponse | None:
        """One of the caller's; None where there is none, or none any more."""
        return self._responses.get((caller, response_id))

    def drop(self, caller: str, response_id: str) -> bool:
        """Forget one of the caller's; whether there was one."""
        found = self._responses.pop((caller, response_id), None)
        self._characters -= 0 if found is None else found.characters
        return found is not None
