"""Time to first token of a second turn: its beginning in a row, in the store, or in a file, against reading it all.

One answer at a time, random token ids, every round in turn. A round: the first turn is read (cold) and answered; the second
turn goes on from the row; another prompt takes the row; the second turn again, from the store; what is held is written to a
file, and a new engine reads it and answers the second turn from there.

usage: prefix.py FOLDER [--tokens 1000] [--new 16] [--rounds 5] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine import prefix_file
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.runtime.session import DecoderSession, SessionSettings
from aiasst.sizes import human_bytes
from measure import machine

ANSWER = 8


@dataclass(frozen=True)
class Round:
    """Seconds, but for the last."""

    cold: float
    row: float
    store: float
    file: float
    """To the first token, when it is loaded."""
    writing: float
    loading: float
    copying: float
    """From the store into a row, of all its tokens."""
    file_bytes: int


def first_token(engine: Engine, prompt: list[int], least_cached: int) -> tuple[float, list[int]]:
    """Seconds until the first token of the answer, and the answer."""
    began = time.perf_counter()
    engine.submit(Request("a", tuple(prompt), Sampling(max_tokens=ANSWER, temperature=0)))
    seconds, answer, cached = 0.0, [], 0
    while engine.busy:
        for event in engine.step():
            seconds = seconds or time.perf_counter() - began
            answer += [] if event.token is None else [event.token]
            cached = event.cached_tokens
    if cached < least_cached:
        raise SystemExit(f"{cached} tokens were taken over, not {least_cached}")
    return seconds, answer


def one_round(session: DecoderSession, model: str, tokens: int, new: int, seed: int, path: Path) -> Round:
    """Everything once, with ids of its own."""
    random = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return random.integers(0, session.vocab_size, count).tolist()

    engine, prompt = Engine(session, slots=1), ids(tokens)
    cold, answer = first_token(engine, prompt, 0)
    begun = prompt + answer
    held = len(begun) - 1  # the last token of an answer is never fed back
    row, _ = first_token(engine, begun + ids(new), held)
    first_token(engine, ids(24), 0)
    store, _ = first_token(engine, begun + ids(new), held)
    began = time.perf_counter()
    size = prefix_file.write(path, engine.held(begun), model=model, shape=engine.cache_shape)
    written = time.perf_counter()
    fresh = Engine(session, slots=1)
    loading = time.perf_counter()
    fresh.prefixes.load(path, model)
    loaded = time.perf_counter()
    shape = (1, session.kv_heads, held, session.head_dim)
    rows = [np.empty(shape, session.cache_dtype) for _ in range(2 * session.layers)]
    found = fresh.prefixes.find(np.array(begun[:held], np.int64))
    for _ in range(2):  # pages of the row that were never touched would be counted the first time
        copying = time.perf_counter()
        fresh.prefixes.fetch(found, rows)
        copied = time.perf_counter()
    file, _ = first_token(fresh, begun + ids(new), held)
    return Round(cold, row, store, file, written - began, loaded - loading, copied - copying, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--tokens", type=int, default=1000, help="of the first turn's prompt; fewer where they do not fit"
    )
    parser.add_argument("--new", type=int, default=16, help="tokens of the second turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    folder = ModelFolder.open(asked.folder)
    session = DecoderSession.open(folder, SessionSettings(threads=asked.threads))
    tokens = min(asked.tokens, session.context_length - asked.new - 2 * ANSWER)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        path = Path(scratch) / "a.kv"
        rounds = [
            one_round(session, folder.identity, tokens, asked.new, seed, path) for seed in range(asked.rounds + 1)
        ][1:]  # the first one warms up
    print(f"{machine()}\n{folder.path.name}: {tokens} tokens, then {asked.new} more; best (median) of {len(rounds)}\n")
    print("| time to first token | ms | share of cold |\n|---|---|---|")
    for name in ("cold", "row", "store", "file"):
        values = [getattr(r, name) * 1e3 for r in rounds]
        shares = [getattr(r, name) / r.cold for r in rounds]
        share = f"{min(shares):.1%} ({statistics.median(shares):.1%})"
        print(f"| {name} | {min(values):.1f} ({statistics.median(values):.1f}) | {share} |")
    for name in ("writing", "loading", "copying"):
        values = [getattr(r, name) * 1e3 for r in rounds]
        print(f"{name}: {min(values):.1f} ms ({statistics.median(values):.1f})")
    print(f"file: {human_bytes(rounds[0].file_bytes)}")
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(r) for r in rounds], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
