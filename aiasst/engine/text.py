"""Text in, pieces of text out: the engine with a tokenizer around it. Knows no cache, no session and no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine import prefix_file
from aiasst.engine.constrain import Constrainer, Constraint
from aiasst.engine.engine import Engine
from aiasst.engine.forms import forms_in_words, open_decoder
from aiasst.engine.limits import pacer_for
from aiasst.engine.requests import Event, Finished, Guide, Request, Sampling, TokenChances
from aiasst.engine.stop import StopFilter
from aiasst.errors import PromptError
from aiasst.tokenizer import Detokenizer, Message, Tokenizer

_STEPS_ENOUGH = 12
"""Decode steps of a number of sequences before they are compared with what was expected."""


@dataclass(frozen=True)
class TextRequest:
    """A prompt to continue, or messages to answer with the chat template: exactly one of the two."""

    id: str
    prompt: str | tuple[int, ...] | None
    """A text, or ids of the model's own tokenizer."""
    messages: tuple[Message, ...] | None
    sampling: Sampling
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings; it is not part of the answer."""
    constraint: Constraint | None = None
    """What the answer must be: JSON of a schema, a match of a regular expression, or a text of a grammar."""
    priority: int = 0
    deadline_seconds: float | None = None
    """Both as in `requests.Request`."""
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the chat template is told beside the messages: tools, and switches of its own."""


@dataclass(frozen=True)
class PreparedRequest:
    """A request in ids, with what holds its answer to its constraint: for one `submit`."""

    request: TextRequest
    ids: tuple[int, ...]
    guide: Guide | None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that were in the cache already."""
    completion_tokens: int
    drafted_tokens: int = 0
    """Tokens that were tried several at a time, because the text had gone on so before."""
    accepted_tokens: int = 0
    """Of these, those that the answer has."""


@dataclass(frozen=True)
class TokenText:
    """A token that was taken, or could have been."""

    id: int
    text: str
    """What it adds to a text; the replacement character where it is a part of a character."""
    logprob: float
    """Natural logarithm of the probability that the model itself gave it."""


@dataclass(frozen=True)
class TokenReport:
    """How likely one token of an answer was, and what else was likely there."""

    chosen: TokenText
    likeliest: tuple[TokenText, ...]


@dataclass(frozen=True)
class TextEvent:
    """A piece of an answer; the last one says why it ended and what it took."""

    request_id: str
    text: str
    finished: Finished | None
    usage: Usage | None
    tokens: tuple[TokenReport, ...] = ()
    """The tokens since the last event, where the request asked for log probabilities."""


@dataclass
class _Answer:
    """An answer under way."""

    detokenizer: Detokenizer
    stop: StopFilter
    prompt_tokens: int
    completion_tokens: int = 0
    reports: list[TokenReport] = field(default_factory=list)
    """Not told yet."""

    def told(self) -> tuple[TokenReport, ...]:
        """What is to be told now."""
        reports, self.reports = tuple(self.reports), []
        return reports


class TextEngine:
    """A model folder that answers: `submit` requests, then call `step` until it is no longer `busy`.

    Raises:
        ArtifactError: the folder is no text generator, or lacks its tokenizer.
        ResourceError: the execution provider does not load, the model does not fit under the memory ceiling, or a limit of
            temperature or power cannot be kept here.
    """

    def __init__(self, folder: ModelFolder, config: DeviceConfig, *, speculate: bool = True) -> None:
        """Open `folder` as `config` says; `speculate` as in `Engine`."""
        decisions = config.decisions
        tokenizer = Tokenizer.load(folder.path)
        engine = Engine(
            open_decoder(folder, decisions),
            slots=decisions.slots.value,
            memory_ceiling_bytes=decisions.memory_ceiling_bytes.value,
            chunk=decisions.chunk.value,
            inter_token_latency=decisions.inter_token_latency_ms.value / 1000,
            speculate=speculate,
            pacer=pacer_for(decisions),
        )
        self._assemble(tokenizer, engine, folder.manifest.tokens.eos, folder.identity)
        self.forms = forms_in_words(folder, decisions)

    @classmethod
    def of(cls, tokenizer: Tokenizer, engine: Engine, stop_ids: tuple[int, ...] = (), model: str = "") -> TextEngine:
        """A TextEngine of parts that exist already; `model` is the hash that its files of keys and values have."""
        made = cls.__new__(cls)
        made._assemble(tokenizer, engine, stop_ids, model)
        return made

    def _assemble(self, tokenizer: Tokenizer, engine: Engine, stop_ids: tuple[int, ...], model: str) -> None:
        self.tokenizer = tokenizer
        self.engine = engine
        self._model = model
        self.forms = ""
        """A line on which forms of the model run, where there are two."""
        self.remarks: tuple[str, ...] = ()
        """Lines on which device config is obeyed, and what of it is not."""
        self.compare: Callable[[Sequence[tuple[int, float]]], str] | None = None
        """Says in a line where decode steps (sequences, seconds) are far from what was expected."""
        self._stop_ids = tuple(dict.fromkeys((*stop_ids, *tokenizer.eos_ids)))
        self._constrainer = Constrainer(tokenizer, self._stop_ids, engine.vocab_size)
        self._answers: dict[str, _Answer] = {}
        self._token_texts: dict[int, str] = {}
        self._undelivered: deque[TextEvent] = deque()

    def drifted(self) -> str:
        """Once, as soon as steps enough were taken: a line where they are far from what was expected; else nothing."""
        steps = self.engine.decode_steps(_STEPS_ENOUGH) if self.compare is not None else []
        if self.compare is None or not steps:
            return ""
        compare, self.compare = self.compare, None
        return compare(steps)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to deliver."""
        return self.engine.busy or bool(self._undelivered)

    @property
    def free_slots(self) -> int:
        """Requests that could begin now; more may be submitted, they wait in line."""
        return self.engine.free_slots

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.engine.context_length

    def encode(self, request: TextRequest) -> list[int]:
        """The ids of the request's prompt, or of its messages in the chat template.

        Raises:
            PromptError: neither or both are given, there is no chat template, it refuses the messages, or nothing is left to read.
        """
        if (request.prompt is None) == (request.messages is None):
            raise PromptError("a request has either a prompt or messages", "give one of the two")
        if request.messages is not None:
            if not self.tokenizer.has_chat_template:
                raise PromptError(
                    "this model has no chat template, so it cannot answer messages", "give a prompt to continue instead"
                )
            ids = self.tokenizer.encode_chat(request.messages, variables=request.template)
        elif isinstance(request.prompt, tuple):
            ids = list(request.prompt)
        else:
            ids = self.tokenizer.encode(request.prompt or "")
        if not ids and self.tokenizer.bos_id is not None:
            return [self.tokenizer.bos_id]
        if not ids:
            raise PromptError("the prompt is empty", "write at least one word")
        return ids

    def check(self, constraint: Constraint) -> None:
        """Prepare a constraint that requests will have.

        Raises:
            PromptError: it is not valid, no answer can fulfil it, or this model's tokenizer cannot be constrained.
        """
        self._constrainer.guide(constraint)

    def prepare(self, request: TextRequest) -> PreparedRequest:
        """What of `submit` takes time with a long prompt or a large schema; may run in another thread, one at a time.

        Raises:
            PromptError: see `encode` and `check`.
        """
        guide = None if request.constraint is None else self._constrainer.guide(request.constraint)
        return PreparedRequest(request, tuple(self.encode(request)), guide)

    def submit(self, request: TextRequest | PreparedRequest) -> None:
        """Put a request in line. Its id must not be that of a request still under way.

        Raises:
            PromptError: see `prepare`; or the prompt is longer than the context, with the numbers.
        """
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        asked, ids = prepared.request, prepared.ids
        self.engine.submit(
            Request(
                asked.id,
                ids,
                asked.sampling,
                self._stop_ids,
                guide=prepared.guide,
                priority=asked.priority,
                deadline_seconds=asked.deadline_seconds,
            )
        )
        self._answers[asked.id] = _Answer(self.tokenizer.detokenizer(), StopFilter(asked.stop), len(ids))

    def cancel(self, request_id: str) -> None:
        """End an answer now; its last event says "cancelled". Nothing happens when it has ended already."""
        self.engine.cancel(request_id)

    def step(self) -> list[TextEvent]:
        """Compute a little (a chunk of one prompt, or one token of every active answer) and give what came of it."""
        if self._undelivered:
            events = list(self._undelivered)
            self._undelivered.clear()
            return events
        return [made for event in self.engine.step() if (made := self._in_text(event)) is not None]

    def generate(self, request: TextRequest) -> Iterator[TextEvent]:
        """Submit one request and give its events until it ends; leaving the loop early cancels it.

        Events of other requests under way are kept for the next `step`.
        """
        self.submit(request)
        others: list[TextEvent] = []
        finished = False
        try:
            while not finished:
                events = self.step()
                others += [event for event in events if event.request_id != request.id]
                for event in events:
                    if event.request_id == request.id:
                        finished = event.finished is not None
                        yield event
        finally:
            if not finished:
                self._forget(request.id)
            self._undelivered.extend(others)

    def save_prefix(self, path: Path, request: TextRequest, *, force: bool = False) -> int:
        """Write the keys and values of the request's beginning, as much as is held of it; gives the bytes, 0 without a file.

        Raises:
            PromptError: see `encode`.
            ArtifactError, ResourceError: see `prefix_file.write`.
        """
        return self._write(path, self.engine.held(self.encode(request)), force=force)

    def save_shared(self, path: Path, *, force: bool = False) -> int:
        """Write what more than one request has begun with; gives the bytes, 0 where that is nothing or all from files.

        Raises:
            ArtifactError, ResourceError: see `prefix_file.write`.
        """
        pieces = self.engine.shared()
        return self._write(path, pieces if self.engine.prefixes.news else [], force=force)

    def load_prefixes(self, path: Path) -> int:
        """Take keys and values from a file that one of the two wrote, as far as there is room; gives the tokens.

        Raises:
            ArtifactError: absent, damaged, or another model's; nothing of it is used.
        """
        return self.engine.prefixes.load(path, self._model)

    def _write(self, path: Path, pieces: list[prefix_file.Piece], *, force: bool) -> int:
        if not pieces:
            return 0
        return prefix_file.write(path, pieces, model=self._model, shape=self.engine.cache_shape, force=force)

    def _forget(self, request_id: str) -> None:
        self._answers.pop(request_id, None)
        self.engine.cancel(request_id, silent=True)

    def _in_text(self, event: Event) -> TextEvent | None:
        answer = self._answers.get(event.request_id)
        if answer is None:  # submitted to the engine directly: not ours to tell
            return None
        piece, stopped = "", False
        if event.token is not None:
            answer.completion_tokens += 1
            piece, stopped = answer.stop.feed(answer.detokenizer.feed(event.token))
            if event.chances is not None:
                answer.reports.append(self._report(event.token, event.chances))
        if event.finished is not None and not stopped:
            rest, stopped = answer.stop.feed(answer.detokenizer.flush())
            piece += rest
            if not stopped:
                piece += answer.stop.flush()
        finished: Finished | None = "stop" if stopped else event.finished
        if finished is None:
            return TextEvent(event.request_id, piece, None, None, answer.told()) if piece else None
        self._forget(event.request_id)
        usage = Usage(
            answer.prompt_tokens,
            event.cached_tokens,
            answer.completion_tokens,
            event.drafted_tokens,
            event.accepted_tokens,
        )
        return TextEvent(event.request_id, piece, finished, usage, answer.told())

    def _report(self, token: int, told: TokenChances) -> TokenReport:
        def named(index: int, logprob: float) -> TokenText:
            return TokenText(index, self._token_text(index), logprob)

        return TokenReport(named(token, told.chosen), tuple(named(*entry) for entry in told.likeliest))

    def _token_text(self, token: int) -> str:
        if token not in self._token_texts:
            # Behind another token: some decoders drop the space before the first word.
            before = self.tokenizer.backend.encode("a", add_special_tokens=False).ids[-1:]
            decode = self.tokenizer.backend.decode
            both: str = decode([*before, token], skip_special_tokens=False)
            self._token_texts[token] = both[len(decode(before, skip_special_tokens=False)) :]
        return self._token_texts[token]
