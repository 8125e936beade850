"""A conversation with a model: what was said, what to ask next, what it took. Knows no terminal and no format of files.

In chat mode the checkpoint's template makes a prompt of the messages. Without a template it is completion mode: one
text grows, what is written joins its end, and a text that the model has ended is followed by a new one. Either way the
whole history is sent each time, and the engine takes what it still has in its cache.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from aiasst.engine.constrain import Constraint
from aiasst.engine.requests import Finished, Sampling
from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.errors import PromptError
from aiasst.tokenizer import Message

Mode = Literal["chat", "completion"]


class Answerer(Protocol):
    """What a conversation needs of an engine; `TextEngine` is the real one."""

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    def submit(self, request: TextRequest) -> None:
        """Take a request, or raise PromptError."""

    def step(self) -> Sequence[TextEvent]:
        """Compute a little."""

    def cancel(self, request_id: str) -> None:
        """End an answer; its last event says so."""

    def save_prefix(self, path: Path, request: TextRequest) -> int:
        """Write the keys and values of a prompt's beginning, as much as is held; gives the bytes, 0 without a file."""

    def load_prefixes(self, path: Path) -> int:
        """Take keys and values from such a file, or raise ArtifactError; gives the tokens."""


@dataclass(frozen=True)
class Timing:
    """How long one answer took, in seconds."""

    first_token: float
    total: float


@dataclass(frozen=True)
class Turn:
    """What was written and what was answered."""

    prompt: str
    answer: str
    finish_reason: Finished
    usage: Usage | None = None
    """None for a turn that was loaded from a file."""
    timing: Timing | None = None


class Conversation:
    """Turns with one model.

    Args:
        engine: answers.
        mode: "chat" where the model has a chat template.
        sampling: for every answer; each gets its own seed, counted up from this one's (drawn where it is None).
        stop: strings that end an answer.
        constraint: what every answer must be.
        system: the system message (chat mode only).

    Raises:
        PromptError: a system message in completion mode.
    """

    def __init__(
        self,
        engine: Answerer,
        mode: Mode,
        sampling: Sampling,
        *,
        stop: tuple[str, ...] = (),
        constraint: Constraint | None = None,
        system: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mode: Mode = mode
        self.turns: list[Turn] = []
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._engine = engine
        self._sampling = sampling
        self._stop = stop
        self._constraint = constraint
        self._clock = clock
        self._asked = 0
        self._system: str | None = None
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message that begins every prompt."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text and self.mode == "completion":
            raise PromptError(
                "this model has no chat template, so it knows no system message", "begin the text itself with it"
            )
        self._system = text or None

    @property
    def context_length(self) -> int:
        """Tokens that the conversation may have."""
        return self._engine.context_length

    @property
    def tokens(self) -> int:
        """Tokens of the conversation at its last turn; 0 where that is not known."""
        usage = self.turns[-1].usage if self.turns else None
        return usage.prompt_tokens + usage.completion_tokens if usage else 0

    @property
    def full(self) -> bool:
        """Whether the last answer ended because the context did."""
        return self.tokens >= self.context_length

    @property
    def open_text(self) -> str:
        """Completion mode: the text as it stands, "" where the next turn begins a new one."""
        text = ""
        for turn in self.turns:
            text = _join(text, turn.prompt) + turn.answer
            if turn.finish_reason == "stop":
                text = ""
        return text

    def ask(self, text: str, interrupted: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Give the answer to `text` piece by piece; it becomes a turn when it is complete or cut short.

        `interrupted` is asked between the steps; True ends the answer, and what was said of it stays (a turn without a
        word of answer is none).

        Raises:
            PromptError: the conversation is longer than the context, or the template refuses it; the turns stay as they are.
        """
        request = self._request(text)
        began = self._clock()
        self._submit(request)
        self._asked += 1
        pieces: list[str] = []
        last: TextEvent | None = None
        first: float | None = None
        try:
            for event in self._events(request.id, interrupted):
                if first is None and event.text:
                    first = self._clock() - began
                pieces.append(event.text)
                last = event if event.finished else None
                if event.text:
                    yield event.text
        finally:
            if last is None:
                self._engine.cancel(request.id)
        if last is not None and last.finished is not None:
            timing = Timing(first or 0.0, self._clock() - began)
            self._record(Turn(text, "".join(pieces), last.finished, last.usage, timing))

    def retry(self, interrupted: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Ask the last turn's prompt again; its answer is replaced.

        Raises:
            PromptError: nothing was asked yet.
        """
        if not self.turns:
            raise PromptError("there is no answer to try again", "write something first")
        turn = self.turns.pop()
        kept = len(self.turns)
        try:
            yield from self.ask(turn.prompt, interrupted)
        finally:
            if len(self.turns) == kept:
                self.turns.append(turn)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

    def save_keys(self, path: Path) -> int:
        """Write the keys and values of what was said, for `load_keys`; gives the bytes, 0 where there are none and no file.

        Raises:
            AiasstError: they cannot be written.
        """
        if not self.turns or (self.mode == "completion" and not self.open_text):
            return 0
        # What comes next begins with all that was said; the word itself is not held, so it is not written.
        return self._engine.save_prefix(path, self._request("" if self.mode == "completion" else "Go on."))

    def load_keys(self, path: Path) -> int:
        """Take keys and values from a file, so that what they belong to need not be read again; gives the tokens.

        Raises:
            ArtifactError: there is no such file, it is damaged, or another model's.
        """
        return self._engine.load_prefixes(path)

    def _request(self, text: str) -> TextRequest:
        sampling = replace(self._sampling, seed=self.seed + self._asked)
        number = f"turn-{self._asked}"
        prompt, messages = None, None
        if self.mode == "completion":
            prompt = _join(self.open_text, text)
        else:
            messages = (*self._messages(), Message("user", text))
        return TextRequest(number, prompt, messages, sampling, self._stop, self._constraint)

    def _messages(self) -> Iterator[Message]:
        if self._system is not None:
            yield Message("system", self._system)
        for turn in self.turns:
            yield Message("user", turn.prompt)
            yield Message("assistant", turn.answer)

    def _submit(self, request: TextRequest) -> None:
        try:
            self._engine.submit(request)
        except PromptError as error:
            if not self.turns:
                raise
            raise PromptError(error.message, f"/reset begins a new conversation; or {error.hint}") from None

    def _events(self, request_id: str, interrupted: Callable[[], bool]) -> Iterator[TextEvent]:
        """The events of a request until it ends, which an interruption makes it do."""
        cancelled = False
        while True:
            for event in self._engine.step():
                if event.request_id == request_id:
                    yield event
                    if event.finished is not None:
                        return
            if not cancelled and interrupted():
                self._engine.cancel(request_id)
                cancelled = True

    def _record(self, turn: Turn) -> None:
        if turn.answer or turn.finish_reason != "cancelled":
            self.turns.append(turn)


def _join(text: str, more: str) -> str:
    """`more` after `text`, with a space between where neither brings one."""
    if not text or not more or text[-1].isspace() or more[0].isspace():
        return text + more
    return f"{text} {more}"
