"""A text engine without a model: answers words that its prompt and seed determine, so that tests know what must come."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from aiasst.engine.text import TextEvent, TextRequest, Usage
from aiasst.errors import ArtifactError, PromptError

WORDS = ("the", "wolf", "went", "into", "deep", "dark", "wood", "and", "found", "a", "little", "house")


def expected_words(text: str, seed: int | None, count: int) -> list[str]:
    """The words that the fake engine answers."""
    generator = random.Random(f"{text}|{seed}")
    return [generator.choice(WORDS) for _ in range(count)]


def rendered(request: TextRequest) -> str:
    """The text that the engine reads: one word is one token."""
    if request.messages is None:
        return request.prompt or ""
    return " ".join(f"<{message.role}> {message.content}" for message in request.messages)


@dataclass
class _Answer:
    request: TextRequest
    words: list[str]
    prompt_tokens: int
    limited: bool
    said: int = 0
    cancelled: bool = False


@dataclass
class FakeTextEngine:
    """Answers one word a step to every request under way. A prompt beginning with "fast" ends after one word ("stop")."""

    slots: int = 2
    context_length: int = 64
    template: bool = True
    answers: dict[str, _Answer] = field(default_factory=dict)
    submitted: list[TextRequest] = field(default_factory=list)
    widest: int = 0
    seen: list[str] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return bool(self.answers)

    @property
    def free_slots(self) -> int:
        return max(0, self.slots - len(self.answers))

    @property
    def has_chat_template(self) -> bool:
        return self.template

    def submit(self, request: TextRequest) -> None:
        if request.messages is not None and not self.template:
            raise PromptError("this model has no chat template", "give a prompt")
        text = rendered(request)
        tokens = len(text.split())
        if tokens + 1 > self.context_length:
            raise PromptError(f"the prompt has {tokens} tokens; the context is {self.context_length}", "shorten it")
        fast = text.split()[-1:] == ["fast"]
        room = self.context_length - tokens
        count = 1 if fast else min(request.sampling.max_tokens, room)
        words = expected_words(text, request.sampling.seed, count)
        self.submitted.append(request)
        self.answers[request.id] = _Answer(request, words, tokens, not fast)
        self.widest = max(self.widest, len(self.answers))

    def cancel(self, request_id: str) -> None:
        if request_id in self.answers:
            self.answers[request_id].cancelled = True

    def save_prefix(self, path: Path, request: TextRequest) -> int:
        """Writes the words that it has seen of the prompt's beginning."""
        words = rendered(request).split()
        held = max((_common(seen.split(), words) for seen in self.seen), default=0)
        return path.write_text(" ".join(words[:held]), encoding="utf-8") if held else 0

    def load_prefixes(self, path: Path) -> int:
        """Reads them; a text that begins with "damaged" is none."""
        text = path.read_text(encoding="utf-8")
        if text.startswith("damaged"):
            raise ArtifactError(f"{path.name} is damaged", "write it anew")
        self.seen.append(text)
        return len(text.split())

    def step(self) -> list[TextEvent]:
        return [self._advance(answer) for answer in list(self.answers.values())]

    def _advance(self, answer: _Answer) -> TextEvent:
        if answer.cancelled:
            return self._end(answer, "", "cancelled")
        piece = " " + answer.words[answer.said]
        answer.said += 1
        if answer.said < len(answer.words):
            return TextEvent(answer.request.id, piece, None, None)
        return self._end(answer, piece, "length" if answer.limited else "stop")

    def _end(self, answer: _Answer, piece: str, finished: str) -> TextEvent:
        del self.answers[answer.request.id]
        text = rendered(answer.request)
        cached = max((_common(s.split(), text.split()) for s in self.seen), default=0)
        self.seen.append(text + "".join(" " + word for word in answer.words[: answer.said]))
        usage = Usage(answer.prompt_tokens, cached, answer.said)
        return TextEvent(answer.request.id, piece, finished, usage)  # type: ignore[arg-type]


def _common(first: list[str], second: list[str]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
