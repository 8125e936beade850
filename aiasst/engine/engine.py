"""Requests in, tokens out: runs the session as the scheduler says, on one cache. Knows ids only.

One `step` is one run of the session: a chunk of one prompt, or one token for every answer under way; or, for an answer that is
alone, several of which all but one were drafted (speculate.py).

A request with a seed gets the same answer alone and in company, as far as the session's logits are the same. In fp32 they
are, bit by bit. ONNX Runtime's kernels for 4 and 8 bits round one row differently from several (up to 0.1 of a logit on
the story checkpoint), so that a quantized model may part ways at a near tie; from two rows up the number of rows changes
nothing at all (measured with 2 to 16 rows in int2, int4, int8 and w8a8). So may an answer whose prompt took over keys and
values that were computed one token at a time, and one that a session of two forms (`runtime.pair`) hands from one to the other.

Drafts change no answer either, as far as the logits are the same: each token is chosen from the model's logits at its place,
in order, with the request's own settings, draws and grammar, and what lies behind the first that is not the drafted one is
thrown away (its keys are overwritten). But a run over several tokens rounds differently from one over a single token: by 2e-5
of a logit in fp32, which changed no choice, and by up to 0.5 where activations are rounded to 8 bits (int4, int8, w8a8), which
changed the likeliest token at 2 of 100 places of the story checkpoint. Neither is the better one. Runs over 2, 4, 8 and 16
tokens give the same bits in all formats, so that the length of drafts changes nothing; whether there is one at all may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil

from aiasst.engine.cache import CacheShape, KVCache, budget_under
from aiasst.engine.pacing import Pacer
from aiasst.engine.prefix import LEAST, Placement, Resident, common_prefix, place
from aiasst.engine.prefix_file import Piece
from aiasst.engine.prefix_index import NOTHING, Found
from aiasst.engine.prefix_store import PrefixStore
from aiasst.engine.requests import Event, Finished, Request, Sampling, TokenChances
from aiasst.engine.sampling import chances, sample
from aiasst.engine.scheduler import INTER_TOKEN_LATENCY, Decode, Prefill, Scheduler, Swap
from aiasst.engine.speculate import LONGEST_DRAFT, Speculator
from aiasst.errors import PromptError

__all__ = ["Decoder", "Engine", "EngineStats", "Event", "Request", "Sampling"]

Ids = npt.NDArray[np.int64]
CHUNK = 256
"""Tokens of a prompt that are read in one run, at most."""
LEAST_PREFIX_BYTES, PREFIX_BYTES = 64 * 2**20, 512 * 2**20
"""Memory for what rows held before: as much as the weights, within these bounds; under a ceiling, what the rows leave of it."""


def _unwatched(_: str) -> None:
    """Nobody asks where a step goes."""


class Decoder(Protocol):
    """What the engine needs of a session; `runtime.session.DecoderSession` and `runtime.pair.PairedSession` are the real ones."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    cache_dtype: np.dtype[Any]
    weight_bytes: int

    def step(
        self, ids: Ids, lengths: Sequence[int], cache_rows: Sequence[npt.NDArray[Any]], all_logits: bool = False
    ) -> npt.NDArray[np.float32]:
        """ids [rows, new] → logits [rows, vocabulary] of each row's last token, or [rows, new, vocabulary] of all."""


@dataclass(frozen=True)
class EngineStats:
    """What the engine has done since it was made; tokens and seconds add up over requests."""

    steps: int
    prefill_tokens: int
    """Tokens of prompts that were computed."""
    cached_tokens: int
    """Tokens of prompts that were taken from the cache or the store."""
    decoded_tokens: int
    prefill_seconds: float
    decode_seconds: float
    drafted_tokens: int
    """Tokens that were verified in one run with the token before them, in the hope that the answer goes on so."""
    accepted_tokens: int
    """Those of them with which it did; the decoded tokens count them too."""
    slots: int
    """Rows of the cache now; fewer than asked for while long sequences need the memory."""
    capacity: int
    """Tokens that a row of the cache has room for now."""
    cache_bytes: int
    prefix_bytes: int
    """Keys and values in the store beside the rows, under the same ceiling."""
    rows: int
    """Answers that are decoded at once, at most, by what steps have cost so far."""
    waiting: int
    """Requests in line."""
    resident_bytes: int
    """Memory that the whole process takes now."""
    ceiling_bytes: int | None
    """What it may take; None: no limit was set."""
    paced_seconds: float
    """Pauses that kept a limit of temperature or power."""
    decode_steps: int = 0
    """Runs that went on with answers under way; the decoded tokens by these are what such a run gives."""
    active_tokens: int = 0
    """Tokens of requests under way whose keys and values are in the cache; it has room for slots times capacity."""


class _Sequence:
    """One request on its way: its tokens, and how many of them are in the cache."""

    def __init__(self, request: Request, limit: int) -> None:
        self.request = request
        self.limit = limit
        """Tokens of prompt and answer together, at most."""
        self.length = self.prompt_length = len(request.prompt)
        self.resident = Resident(np.empty(limit, np.int64))
        self.resident.tokens[: self.length] = request.prompt
        self.sampling, self.guide = request.sampling, request.guide
        self.generator = np.random.default_rng(request.sampling.seed)
        self.cached_tokens = self.drafted_tokens = self.accepted_tokens = 0
        self.speculator = Speculator()

    @property
    def tokens(self) -> Ids:
        return self.resident.tokens[: self.length]

    def append(self, token: int) -> None:
        self.resident.tokens[self.length] = token
        self.length += 1


class Engine:
    """Continuous batching over one session: `submit` requests at any time, call `step` while `busy`."""

    def __init__(
        self,
        session: Decoder,
        *,
        slots: int,
        memory_ceiling_bytes: int | None = None,
        chunk: int = CHUNK,
        inter_token_latency: float = INTER_TOKEN_LATENCY,
        prefix_bytes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        speculate: bool = False,
        pacer: Pacer | None = None,
        on_phase: Callable[[str], None] = _unwatched,
    ) -> None:
        """`slots` sequences at once, fewer where they do not fit under the ceiling (weights, cache and stored prefixes together).

        Prompts are read in pieces of `chunk` tokens, or of fewer where the answers under way would otherwise wait longer
        than `inter_token_latency` seconds for their next token. Costs and deadlines are measured on `clock`, in seconds.
        With `speculate`, an answer that is alone gets several tokens a step where drafts of them pay.
        `pacer` pauses between steps where there is a limit to keep. `on_phase` is told when a phase of a step begins:
        admit, feed (what the session's run gets and gives, the run inside), sample, and "" at the end of the step.

        Raises:
            ResourceError: not even one sequence fits.
        """
        shape = CacheShape(session.layers, session.kv_heads, session.head_dim, session.cache_dtype)
        logits = max(slots, 1 + LONGEST_DRAFT) if speculate else slots
        self._session = session
        self._speculates = speculate
        self._budget = budget_under(
            memory_ceiling_bytes,
            weight_bytes=session.weight_bytes,
            working_bytes=logits * session.vocab_size * np.dtype(np.float32).itemsize,
            shape=shape,
            slots=slots,
            context=session.context_length,
        )
        capacity = self._budget.capacity_for(1)
        self._cache = KVCache(shape, self._budget.slots_for(capacity), capacity)
        # A small model is chosen for a small footprint.
        usual = min(PREFIX_BYTES, max(LEAST_PREFIX_BYTES, session.weight_bytes))
        self._prefix_bytes = usual if prefix_bytes is None else prefix_bytes
        self._prefixes = PrefixStore(shape, self._left_for_prefixes(self._cache.bytes))
        self._scheduler = Scheduler(
            self._cache.slots,
            chunk,
            inter_token_latency=inter_token_latency,
            clock=clock,
            tokens_left=self._tokens_left,
        )
        self._residents = [Resident() for _ in range(self._cache.slots)]
        self._sequences: dict[str, _Sequence] = {}
        self._events: list[Event] = []
        self._ceiling_bytes = memory_ceiling_bytes
        self._clock = clock
        self._pacer = pacer
        self._on_phase = on_phase
        self._steps = self._decode_steps = 0
        self._process = psutil.Process()
        self._prefill_tokens = self._cached_tokens = self._decoded_tokens = 0
        self._prefill_seconds = self._decode_seconds = 0.0
        self._drafted_tokens = self._accepted_tokens = 0

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may have together: the model's context, or what the memory ceiling leaves."""
        return self._budget.longest

    @property
    def vocab_size(self) -> int:
        """Logits that the model computes for each place."""
        return self._session.vocab_size

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to deliver."""
        return self._scheduler.busy or bool(self._events)

    @property
    def free_slots(self) -> int:
        """Requests that could begin without waiting for another to end."""
        return max(0, self._scheduler.slots - len(self._sequences))

    @property
    def stats(self) -> EngineStats:
        """What has been done so far."""
        return EngineStats(
            steps=self._steps,
            prefill_tokens=self._prefill_tokens,
            cached_tokens=self._cached_tokens,
            decoded_tokens=self._decoded_tokens,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            slots=self._cache.slots,
            capacity=self._cache.capacity,
            cache_bytes=self._cache.bytes,
            prefix_bytes=self._prefixes.bytes,
            rows=self._scheduler.rows,
            waiting=len(self._scheduler.waiting),
            resident_bytes=self._process.memory_info().rss,
            ceiling_bytes=self._ceiling_bytes,
            paced_seconds=0.0 if self._pacer is None else self._pacer.paced_seconds,
            decode_steps=self._decode_steps,
            # A tuple: whoever asks may be another thread than the one that steps.
            active_tokens=sum(sequence.resident.cached for sequence in tuple(self._sequences.values())),
        )

    def decode_steps(self, samples: int) -> list[tuple[int, float]]:
        """(Sequences, seconds of a decode step), an average of at least so many steps each."""
        return self._scheduler.costs.steps(samples)

    @property
    def cache_shape(self) -> CacheShape:
        """What a token takes in the cache."""
        return self._cache.shape

    @property
    def prefixes(self) -> PrefixStore:
        """What rows held before, and what was read from files."""
        return self._prefixes

    def held(self, tokens: Sequence[int]) -> list[Piece]:
        """The longest beginning of `tokens` that a row or the store has; valid until the next step."""
        ids = np.array(tokens, np.int64)
        shared = [common_prefix(ids, resident.tokens[: resident.cached]) for resident in self._residents]
        row = max(range(len(shared)), key=lambda row: shared[row])
        if shared[row] < LEAST or shared[row] < self._prefixes.find(ids).length:
            return self._prefixes.held(ids)
        return [Piece(ids[: shared[row]], -1, [array[0] for array in self._cache.rows(row, 1)])]

    def shared(self) -> list[Piece]:
        """What more than one request has begun with, as far as the store has room; valid until the next step."""
        for row, resident in enumerate(self._residents):
            self._store(row, resident.shared)
        return self._prefixes.shared()

    def submit(self, request: Request) -> None:
        """Put a request in line.

        Raises:
            PromptError: the prompt is empty, has an id outside the vocabulary (or its logit_bias has), or leaves no token of
                the context for an answer (with the numbers); or a request of this id is under way.
        """
        self._check(request)
        limit = min(len(request.prompt) + request.sampling.max_tokens, self.context_length)
        self._sequences[request.id] = _Sequence(request, limit)
        deadline = None if request.deadline_seconds is None else self._clock() + request.deadline_seconds
        prompt = len(request.prompt)
        self._scheduler.submit(request.id, prompt, answer=limit - prompt, priority=request.priority, deadline=deadline)

    def cancel(self, request_id: str, *, silent: bool = False) -> None:
        """End a request now, wherever it is; the next step says so, unless `silent`. An unknown or ended one is left alone."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence, None if silent else "cancelled", None)

    def step(self) -> list[Event]:
        """Run the session once, if there is work, and give what happened since the last step; or rest a little, see pacing.py.

        Raises:
            ArtifactError, ResourceError: the session failed; the requests under way stay as they were.
        """
        for request_id in self._scheduler.expired():
            self._end(self._sequences[request_id], "deadline", None)
        if self._pacer is not None and self._pacer.resting():
            return self._told()
        self._on_phase("admit")
        self._admit()
        work = self._scheduler.next()
        self._steps += 1
        self._on_phase("feed")
        began = self._clock()
        if isinstance(work, Prefill):
            self._prefill(work)
            self._scheduler.costs.read(work.count, self._clock() - began)
        elif isinstance(work, Decode):
            self._decode_steps += 1
            draft = self._draft(work)
            if draft:
                self._verify(self._sequences[work.request_ids[0]], draft)
            else:
                self._decode(work)
                self._scheduler.costs.decoded(len(work.request_ids), self._clock() - began)
        if self._pacer is not None:
            self._pacer.worked(self._clock() - began)
        self._on_phase("")
        return self._told()

    def _told(self) -> list[Event]:
        """What happened since this was asked last."""
        events, self._events = self._events, []
        return events

    def _check(self, request: Request) -> None:
        if request.id in self._sequences:
            raise PromptError(f"a request with the id '{request.id}' is under way", "give every request its own id")
        if not request.prompt:
            raise PromptError("the prompt is empty", "write at least one word")
        if min(request.prompt) < 0 or max(request.prompt) >= self._session.vocab_size:
            raise PromptError(
                f"the prompt has a token outside the vocabulary of {self._session.vocab_size}",
                "the tokenizer belongs to another model: convert the checkpoint again",
            )
        if (highest := max(request.sampling.logit_bias, default=0)) >= self._session.vocab_size:
            raise PromptError(
                f"logit_bias names token {highest}, outside the vocabulary of {self._session.vocab_size}",
                "take the token ids of this model's tokenizer",
            )
        tokens, room = len(request.prompt), self.context_length
        if tokens + 1 > room:
            whose = "the model's context" if room == self._session.context_length else "what the memory ceiling leaves"
            raise PromptError(
                f"the prompt has {tokens} tokens and needs one more for the answer; {whose} is {room} tokens",
                "shorten the prompt" if room == self._session.context_length else "shorten it, or raise the ceiling",
            )

    def _admit(self) -> None:
        """Let the first in line begin, if a row is free, there is memory for all it may need, and it is not too late for it."""
        while (request_id := self._scheduler.next_in_line) is not None:
            sequence = self._sequences[request_id]
            if not self._make_room(sequence):
                return
            stored = self._prefixes.find(sequence.tokens[:-1]).length
            placement = place(sequence.tokens, self._residents, self._scheduler.free_rows, stored)
            if self._scheduler.too_late(request_id, sequence.length - placement.length):
                self._end(sequence, "deadline", None)
                continue
            taken = self._take_over(placement, sequence)
            self._scheduler.admit(request_id, placement.row, taken)
            sequence.cached_tokens = sequence.resident.cached = taken
            self._cached_tokens += taken
            self._residents[placement.row] = sequence.resident
            return

    def _take_over(self, placement: Placement, sequence: _Sequence) -> int:
        """Fill the row with what the prompt takes over, and give its tokens; what the row loses goes to the store."""
        row, length = placement.row, placement.length
        sequence.resident.shared = length
        if placement.source is not None:
            source = self._residents[placement.source]
            source.shared = max(source.shared, 0 if placement.continued else length)
            sequence.resident.shared = min(source.shared, length)
        wanted = sequence.tokens[: length if placement.source is None else 0]
        held = self._residents[row].cached
        if held - (length if placement.source == row else 0) >= LEAST:
            self._store(row, held, spare=self._prefixes.find(wanted))
        if placement.source is None:
            # Looked up again: what was stored meanwhile may have cut its segments, or taken the last memory.
            stored = self._prefixes.find(wanted)
            self._prefixes.fetch(stored, self._cache.rows(row, 1))
            return stored.length
        if placement.source != row:
            self._cache.copy(placement.source, row, length)
        return length

    def _store(self, row: int, count: int, spare: Found = NOTHING) -> None:
        """Keep the first `count` tokens of a row in the store."""
        resident = self._residents[row]
        rows = self._cache.rows(row, 1)
        self._prefixes.keep(resident.tokens[:count], rows, taken=min(count, resident.shared), spare=spare)

    def _left_for_prefixes(self, cache_bytes: int) -> int:
        ceiling = self._budget.ceiling
        return self._prefix_bytes if ceiling is None else max(0, min(self._prefix_bytes, ceiling - cache_bytes))

    def _make_room(self, sequence: _Sequence) -> bool:
        """Size the cache so that every answer under way and this one can reach their limits; False: it must wait."""
        decoding = self._scheduler.decoding
        longest = max(sequence.limit, *(self._sequences[i].limit for i in decoding), 0)
        capacity = self._budget.capacity_for(longest)
        slots = self._budget.slots_for(capacity)
        if slots <= len(decoding):
            return False
        if capacity > self._cache.capacity or self._cache.slots <= len(decoding):
            self._resize(slots, capacity)
        return True

    def _resize(self, slots: int, capacity: int) -> None:
        size = slots * capacity * self._cache.shape.bytes_per_token
        self._prefixes.resize(self._left_for_prefixes(max(size, self._cache.bytes)))
        for row, resident in enumerate(self._residents):
            if row >= slots or resident.cached > capacity:
                self._store(row, resident.cached)
            resident.cached = min(resident.cached, capacity)
        self._cache.resize(slots, capacity, [resident.cached for resident in self._residents])
        kept = self._residents[:slots]
        self._residents = kept + [Resident() for _ in range(slots - len(kept))]
        self._scheduler.resize(slots)
        self._prefixes.resize(self._left_for_prefixes(self._cache.bytes))

    def _tokens_left(self, request_id: str) -> int:
        sequence = self._sequences[request_id]
        return sequence.limit - sequence.length

    def _prefill(self, work: Prefill) -> None:
        sequence = self._sequences[work.request_id]
        end = work.start + work.count
        began = self._clock()
        logits = self._session.step(sequence.tokens[None, work.start : end], (end,), self._cache.rows(work.row, 1))
        self._prefill_seconds += self._clock() - began
        self._prefill_tokens += work.count
        sequence.resident.cached, sequence.resident.used = end, self._steps
        self._swap(self._scheduler.prefilled(work.count))
        if work.last:
            self._choose([sequence], logits)

    def _decode(self, work: Decode) -> None:
        sequences = [self._sequences[request_id] for request_id in work.request_ids]
        ids = np.array([[sequence.tokens[-1]] for sequence in sequences], np.int64)
        began = self._clock()
        logits = self._session.step(ids, [s.length for s in sequences], self._cache.rows(0, len(sequences)))
        seconds = self._clock() - began
        self._decode_seconds += seconds
        if len(sequences) == 1:
            self._scheduler.costs.verified(1, seconds)
        self._decoded_tokens += len(sequences)
        for sequence in sequences:
            sequence.resident.cached, sequence.resident.used = sequence.length, self._steps
        self._choose(sequences, logits)

    def _draft(self, work: Decode) -> list[int]:
        """The next tokens of the only answer under way, where verifying them promises to pay; else none."""
        costs = self._scheduler.costs
        # What a plain step takes is what requests in line are admitted by: it must stay known.
        if not self._speculates or len(work.request_ids) > 1 or not costs.knows(1):
            return []
        sequence = self._sequences[work.request_ids[0]]
        speculator = sequence.speculator
        speculator.observe(sequence.tokens[speculator.seen :].tolist())
        # One token comes of the run beside those of the draft; none may go beyond the limit, nor beyond the row.
        return speculator.draft(costs, sequence.limit - sequence.length - 1)

    def _verify(self, sequence: _Sequence, draft: list[int]) -> None:
        """Run the last token and a draft behind it, and keep what the answer would have said anyway: see above."""
        length = sequence.length
        ids = np.array([[*sequence.tokens[-1:].tolist(), *draft]], np.int64)
        began = self._clock()
        logits = self._session.step(ids, (length + len(draft),), self._cache.rows(0, 1), all_logits=True)[0]
        seconds = self._clock() - began
        self._decode_seconds += seconds
        self._scheduler.costs.verified(len(draft) + 1, seconds)
        self._drafted_tokens += len(draft)
        sequence.drafted_tokens += len(draft)
        resident = sequence.resident
        resident.cached, resident.used = length, self._steps
        self._on_phase("sample")
        for row, drafted in zip(logits, [*draft, None], strict=True):
            self._decoded_tokens += 1
            (token,) = sample(row[None], [sequence]).tolist()
            held = token == drafted and token not in sequence.request.stop_ids
            if held:
                self._accepted_tokens += 1
                sequence.accepted_tokens += 1
                resident.cached = sequence.length + 1
            self._accept(sequence, token, _chances(sequence, token, row))
            if not held or sequence.request.id not in self._sequences:
                return

    def _choose(self, sequences: list[_Sequence], logits: npt.NDArray[np.float32]) -> None:
        """Sample the next token of each sequence and tell it."""
        self._on_phase("sample")
        tokens = sample(logits, sequences).tolist()
        # From the last row up: where several end at once, none is moved into a hole only to leave it.
        for sequence, token, row in reversed(list(zip(sequences, tokens, logits, strict=True))):
            self._accept(sequence, token, _chances(sequence, token, row))

    def _accept(self, sequence: _Sequence, token: int, told: TokenChances | None) -> None:
        if token in sequence.request.stop_ids:
            self._end(sequence, "stop", None)
            return
        sequence.append(token)
        finished = None if sequence.guide is None else sequence.guide.accept(token)
        if finished is None and sequence.length == sequence.limit:
            finished = "length"
        if finished is None:
            self._events.append(_event(sequence, token, None, told))
        else:
            self._end(sequence, finished, token, told)

    def _end(
        self,
        sequence: _Sequence,
        finished: Finished | None,
        token: int | None,
        told: TokenChances | None = None,
    ) -> None:
        del self._sequences[sequence.request.id]
        if finished in ("stop", "length"):
            begun = sequence.prompt_length
            self._scheduler.costs.answered(sequence.length - begun, sequence.limit - begun)
        self._swap(self._scheduler.leave(sequence.request.id))
        if finished is not None:
            self._events.append(_event(sequence, token, finished, told))

    def _swap(self, swap: Swap | None) -> None:
        if swap is None:
            return
        first, second = self._residents[swap.first], self._residents[swap.second]
        self._cache.swap(swap.first, swap.second, first.cached, second.cached)
        self._residents[swap.first], self._residents[swap.second] = second, first


def _chances(sequence: _Sequence, token: int, row: npt.NDArray[np.float32]) -> TokenChances | None:
    wanted = sequence.sampling.logprobs
    return None if wanted is None else chances(row, token, wanted)


def _event(sequence: _Sequence, token: int | None, finished: Finished | None, told: TokenChances | None) -> Event:
    return Event(
        sequence.request.id,
        token,
        finished,
        sequence.cached_tokens,
        told,
        sequence.drafted_tokens,
        sequence.accepted_tokens,
    )
