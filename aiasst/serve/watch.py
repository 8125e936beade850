"""What the service tells whoever counts. An interface; knows neither Prometheus nor logs."""

from __future__ import annotations

from typing import Protocol

from aiasst.engine.requests import Finished
from aiasst.engine.text import Usage
from aiasst.serve.refusals import Reason


class Watch(Protocol):
    """Told of every request's life, on the event loop; must not block."""

    def began(self, model: str, caller: str) -> None:
        """A request was admitted: it runs or waits in line."""

    def first_token(self, model: str, seconds: float) -> None:
        """Its first token came so long after it arrived."""

    def next_token(self, model: str, seconds: float) -> None:
        """A later token came so long after the one before."""

    def ended(self, model: str, caller: str, finished: Finished | None, usage: Usage | None, seconds: float) -> None:
        """It ended so long after it arrived; `finished` is None where it failed."""

    def embedded(self, model: str, caller: str, texts: int, tokens: int, seconds: float) -> None:
        """Texts became vectors."""

    def refused(self, model: str, caller: str, reason: Reason) -> None:
        """A request was not served."""


class Unwatched:
    """The watch of those who do not count."""

    def began(self, model: str, caller: str) -> None:
        """Nothing."""

    def first_token(self, model: str, seconds: float) -> None:
        """Nothing."""

    def next_token(self, model: str, seconds: float) -> None:
        """Nothing."""

    def ended(self, model: str, caller: str, finished: Finished | None, usage: Usage | None, seconds: float) -> None:
        """Nothing."""

    def embedded(self, model: str, caller: str, texts: int, tokens: int, seconds: float) -> None:
        """Nothing."""

    def refused(self, model: str, caller: str, reason: Reason) -> None:
        """Nothing."""
