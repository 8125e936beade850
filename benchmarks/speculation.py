"""An answer that is alone, with drafts from the text itself and without, on work that copies and on work that does not.

usage: speculation.py FOLDER [--rounds 5] [--threads 2] [--tokens 200]

The answers are given: the session's own logits are overruled by what is to be said, after they were computed, so that a model of
random weights copies like a trained one and both ways of working do the same. The texts are those of calibration/. Each answer
has an engine of its own that knows no costs yet. Only the free answers (temperature 0.8) are the model's.

    copy      the answer is the passage in the prompt
    rewrite   the same with one token in twelve replaced
    extract   spans of 10 to 40 tokens of the passage, in any order, with 8 fresh tokens before each
    code      the prompt is a program, and the answer the same with one name changed
    prose     the answer is another passage: nothing is copied on purpose
    programs  likewise with programs, which repeat themselves
    free      the model goes on with a passage
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.engine import Engine, EngineStats
from aiasst.engine.requests import Request, Sampling
from aiasst.runtime.session import DecoderSession, SessionSettings
from aiasst.tokenizer import Tokenizer
from aiasst.tokenizer.passages import read_passages
from measure import interleaved, machine, print_table

CALIBRATION = Path(__file__).resolve().parents[1] / "calibration"
CERTAIN = 1e4
"""A logit that nothing else reaches."""


@dataclass(frozen=True)
class Work:
    """A prompt and what is to be said to it; None: what the model says."""

    prompt: list[int]
    answer: list[int] | None


class Forced:
    """A session that computes everything and then says what it is told to."""

    def __init__(self, session: DecoderSession, work: Work) -> None:
        self._session = session
        self._said = None if work.answer is None else [*work.prompt, *work.answer]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def step(
        self, ids: np.ndarray, lengths: Sequence[int], cache_rows: Sequence[np.ndarray], all_logits: bool = False
    ) -> np.ndarray:
        logits = self._session.step(ids, lengths, cache_rows, all_logits)
        if self._said is not None:
            rows = logits[0] if all_logits else logits
            for row, place in zip(reversed(rows), range(lengths[0], 0, -1), strict=False):
                if place < len(self._said):
                    row[self._said[place]] = CERTAIN
        return logits


def passages(tokenizer: Tokenizer, name: str, tokens: int) -> list[list[int]]:
    """Ids of the passages of a file that have so many, cut to them."""
    found = (
        tokenizer.encode(passage.text) for passage in read_passages(CALIBRATION / f"{name}.jsonl", "the repository's")
    )
    return [ids[:tokens] for ids in found if len(ids) >= tokens]


def work_of(tokenizer: Tokenizer, tokens: int) -> dict[str, list[Work]]:
    """The kinds of work, three pieces each; prompts and answers have about `tokens` tokens."""
    random = np.random.default_rng(1)
    prose, programs = (passages(tokenizer, name, tokens)[:6] for name in ("prose", "code"))
    task = tokenizer.encode("\n\nAnswer:\n")

    def rewritten(ids: list[int], other: list[int]) -> list[int]:
        return [other[at] if random.random() < 1 / 12 else token for at, token in enumerate(ids)]

    def extracted(ids: list[int], other: list[int]) -> list[int]:
        answer: list[int] = []
        while len(answer) < tokens:
            begin, fresh = random.integers(0, tokens - 40), random.integers(0, tokens - 8)
            answer += other[fresh : fresh + 8] + ids[begin : begin + random.integers(10, 41)]
        return answer[:tokens]

    def renamed(ids: list[int]) -> list[int]:
        values, counts = np.unique(ids, return_counts=True)
        name = int(values[np.argsort(-counts)[8]])
        return [7 if token == name else token for token in ids]

    pairs = [(prose[i], prose[i + 3]) for i in range(3)]
    return {
        "copy": [Work([*a, *task], a) for a, _ in pairs],
        "rewrite": [Work([*a, *task], rewritten(a, b)) for a, b in pairs],
        "extract": [Work([*a, *task], extracted(a, b)) for a, b in pairs],
        "code": [Work([*a, *task], renamed(a)) for a in programs[:3]],
        "prose": [Work([*a, *task], b) for a, b in pairs],
        "programs": [Work([*programs[i], *task], programs[i + 3]) for i in range(3)],
        "free": [Work(a, None) for a, _ in pairs],
    }


class Runner:
    """Answers pieces of work, with drafts or without."""

    def __init__(self, session: DecoderSession, *, speculate: bool, tokens: int) -> None:
        self._session = session
        self._speculate = speculate
        self._tokens = tokens
        self.stats: EngineStats | None = None
        """Of the last answer."""

    def speed(self, work: Work) -> float:
        """Tokens a second behind the first, of one answer."""
        engine = Engine(Forced(self._session, work), slots=1, speculate=self._speculate)
        length = self._tokens if work.answer is None else len(work.answer)
        temperature = 0.8 if work.answer is None else 0.0
        engine.submit(Request("a", tuple(work.prompt), Sampling(length, temperature, seed=1)))
        said: list[int | None] = []
        while not said:
            said += [event.token for event in engine.step()]
        began = time.perf_counter()
        while engine.busy:
            said += [event.token for event in engine.step()]
        seconds = time.perf_counter() - began
        if work.answer is not None and said != work.answer:
            raise SystemExit("the answer is not what was to be said")
        self.stats = engine.stats
        return (len(said) - 1) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200, help="of each prompt and answer")
    arguments = parser.parse_args()
    print(machine())
    folder = ModelFolder.open(arguments.folder)
    session = DecoderSession.open(folder, SessionSettings(threads=arguments.threads))
    plain, drafts = (Runner(session, speculate=on, tokens=arguments.tokens) for on in (False, True))
    lines = []
    for name, pieces in work_of(Tokenizer.load(folder.path), arguments.tokens).items():
        best: list[list[float]] = [[], []]
        drafted = accepted = 0
        for work in pieces:
            figures = interleaved(
                arguments.rounds, lambda w=work: 1 / plain.speed(w), lambda w=work: 1 / drafts.speed(w)
            )
            for own, seconds in zip(best, figures, strict=True):
                own.append(min(seconds))
            assert drafts.stats is not None
            drafted, accepted = drafted + drafts.stats.drafted_tokens, accepted + drafts.stats.accepted_tokens
        ratios = [slow / fast for slow, fast in zip(*best, strict=True)]
        lines.append(
            (
                name,
                *(f"{len(pieces) / sum(seconds):.1f}" for seconds in best),
                f"{sum(best[0]) / sum(best[1]):.2f}",
                " ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{accepted} of {drafted}",
            )
        )
    print_table(("work", "plain tok/s", "drafts tok/s", "ratio", "of each piece", "drafts accepted"), lines)


if __name__ == "__main__":
    main()
