"""`aiasst serve` under load, asked by another process over loopback.

    serve.py added  FOLDER                    what the service adds to the engine alone, A B A B
    serve.py short  FOLDER                    short requests a second
    serve.py soak   FOLDER --seconds 600      64 clients of all manners: errors, and memory at each tenth of the time
    serve.py peers  FOLDER --gguf FILE --llama-server PROGRAM     beside llama.cpp's server, 1 to 16 clients
    serve.py faults FOLDER                    kill -9 and SIGTERM under load, and what clients see

usage: serve.py WHAT FOLDER [--clients N] [--rounds N] [--tokens N] [--words N] [--threads N] [--seconds S]

Pieces of an answer are timed when they come, so that every token must have a text: a random model needs a tokenizer as large as its
vocabulary.

The engine alone runs in this process, with the same requests in the same closed loop of clients; in the other turn it rests.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from load import Answer, Asked, closed_loop, completions, prompts, quantile_ms

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEngine, TextRequest
from aiasst.profile import quick_config
from measure import machine, print_table

CLIENTS = (1, 4, 8, 16)
SOAK_TOKENS = (1, 64)


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return psutil.Process(self.process.pid).memory_info().rss


@contextmanager
def running(command: Sequence[str], port: int, health: str = "/health/ready") -> Iterator[Server]:
    """Start a server, wait until it answers, and end it with SIGTERM at last."""
    with Path(os.environ.get("SERVE_LOG", os.devnull)).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(process, port, health)
        yield Server(process, port)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, health: str, seconds: float = 120.0) -> float:
    """Seconds until it answers."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}; set SERVE_LOG=FILE to see what it said")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=2):
                return time.perf_counter() - began
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    sys.exit("the server does not answer")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def ours(folder: Path, port: int, *more: str) -> list[str]:
    """The command of our server."""
    return [sys.executable, "-m", "aiasst", "serve", str(folder), "--port", str(port), *more]


def ask(server: Server, clients: int, requests: Sequence[Asked]) -> list[Answer]:
    """Answers of a closed loop; none may fail."""
    answers = asyncio.run(closed_loop(server.port, clients, iter(requests)))
    broken = [answer for answer in answers if answer.status != 200 or not answer.complete]
    if broken:
        sys.exit(f"{len(broken)} of {len(answers)} requests failed, the first: {broken[0].status} {broken[0].error}")
    return answers


# (a) What the service adds.


class Alone:
    """The engine in this process, asked as the service is: a closed loop of clients."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        model = ModelFolder.open(folder)
        config = quick_config(model)
        if threads:
            changed = {"threads": config.decisions.threads.model_copy(update={"value": threads})}
            config = config.model_copy(update={"decisions": config.decisions.model_copy(update=changed)})
        self.engine = TextEngine(model, config)

    def run(self, clients: int, texts: Sequence[str], tokens: int) -> list[Answer]:
        """The same requests, in the same order."""
        left, under_way, done = iter(enumerate(texts)), dict[str, Answer](), list[Answer]()

        def begin() -> None:
            for number, text in islice(left, 1):
                under_way[str(number)] = Answer(time.perf_counter(), 200)
                sampling = Sampling(max_tokens=tokens, temperature=0)
                self.engine.submit(TextRequest(str(number), text, None, sampling))

        for _ in range(clients):
            begin()
        while self.engine.busy:
            for event in self.engine.step():
                answer = under_way[event.request_id]
                if event.text:
                    answer.arrivals.append(time.perf_counter())
                    answer.text += event.text
                if event.finished is not None:
                    assert event.usage is not None
                    answer.tokens, answer.ended = event.usage.completion_tokens, time.perf_counter()
                    done.append(under_way.pop(event.request_id))
                    begin()
        return done


def added(given: argparse.Namespace) -> None:
    """Time to the first token and between tokens: alone, through the service, and what is between them."""
    alone = Alone(given.folder, given.threads)
    port = free_port()
    with running(ours(given.folder, port, *given.more), port) as server:
        figures: list[tuple[list[Answer], list[Answer]]] = []
        for turn in range(given.rounds + 1):
            texts = prompts(given.clients * given.each, given.words, seed=turn)
            here = alone.run(given.clients, texts, given.tokens)
            there = ask(server, given.clients, completions(texts, given.tokens, model=given.folder.name))
            if turn:  # the first one warms both
                figures.append((here, there))
    print(machine())
    print(f"{given.folder.name}, {given.clients} clients, {given.words} words in, {given.tokens} tokens out")
    rows = []
    for name, seconds_of, share in (
        ("time to first token", lambda a: [a.first], 0.5),
        ("time to first token", lambda a: [a.first], 0.99),
        ("between tokens", lambda a: a.gaps, 0.5),
        ("between tokens", lambda a: a.gaps, 0.99),
    ):
        pairs = [tuple(_quantile(side, seconds_of, share) for side in pair) for pair in figures]
        before, after = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
        between = median(there - here for here, there in pairs)
        rows.append(
            [f"{name}, P{100 * share:g}", f"{before:.2f}", f"{after:.2f}", f"{between:+.2f}", f"{100 * between / before:+.1f}%"]
        )  # fmt: skip
    print_table(("milliseconds (medians of the rounds)", "engine alone", "service", "added", ""), rows)
    speeds = [tuple(_tokens_a_second(side) for side in pair) for pair in figures]
    here, there = (median(speed[side] for speed in speeds) for side in (0, 1))
    print(f"tokens a second: {here:.1f} alone, {there:.1f} through the service ({100 * (there / here - 1):+.1f}%)")


def _quantile(answers: Sequence[Answer], seconds_of: Callable[[Answer], list[float]], share: float) -> float:
    return quantile_ms([seconds for answer in answers if answer.arrivals for seconds in seconds_of(answer)], share)


def _tokens_a_second(answers: Sequence[Answer]) -> float:
    seconds = max(answer.ended for answer in answers) - min(answer.sent for answer in answers)
    return sum(answer.tokens for answer in answers) / seconds


# (b) Short requests.


def short(given: argparse.Namespace) -> None:
    """Requests a second, each a few words in and a few tokens out, not streamed."""
    port = free_port()
    with running(ours(given.folder, port, *given.more), port) as server:
        ask(server, given.clients, completions(prompts(200, 8, seed=99), 8, stream=False, model=given.folder.name))
        rates, waits = [], list[float]()
        for turn in range(given.rounds):
            texts = prompts(given.each * given.clients, 8, seed=turn)
            requests = completions(texts, 8, stream=False, model=given.folder.name)
            began = time.perf_counter()
            answers = ask(server, given.clients, requests)
            rates.append(len(answers) / (time.perf_counter() - began))
            waits += [answer.ended - answer.sent for answer in answers]
    print(machine())
    print(
        f"{given.folder.name}, {given.clients} clients, 8 words in, 8 tokens out: {max(rates):.1f} requests a second "
        f"(median {median(rates):.1f}), P50 {quantile_ms(waits, 0.5):.1f} ms, P99 {quantile_ms(waits, 0.99):.1f} ms"
    )


# (c) A long life.


def mixed(seed: int, model: str) -> Iterator[Asked]:
    """Requests of all manners, without end: streamed or whole, sampled, hung up upon, wrong in every way a caller can be."""
    random = np.random.default_rng(seed)
    for number in count():
        words = prompts(1, int(random.integers(1, 120)), seed=int(random.integers(2**31)))
        tokens = int(random.integers(*SOAK_TOKENS))
        (asked,) = completions(words, tokens, stream=bool(random.random() < 0.7), model=model)
        manner = random.random()
        if manner < 0.10 and asked.body["stream"]:
            yield Asked(asked.body, give_up_after=int(random.integers(0, 10)))
        elif manner < 0.14:
            yield Asked({}, raw=b'{"prompt": "broken')
        elif manner < 0.17:
            yield Asked({**asked.body, "model": f"nobody-{number}"})
        elif manner < 0.20:
            yield Asked({**asked.body, "prompt": "word " * 20_000})
        elif manner < 0.25:
            yield Asked({**asked.body, "temperature": 0.9, "top_p": 0.9, "seed": number, "stop": ["."]})
        elif manner < 0.28:
            yield Asked({**asked.body, "max_tokens": -1})
        else:
            yield asked


EXPECTED = {200, 400, 404, 413, 422, 429}
"""Statuses that these requests may have; others, and connections that break, are errors of the service."""


def soak(given: argparse.Namespace) -> None:
    """Errors other than 429, and resident memory at each tenth of the time."""
    port = free_port()
    statuses, errors = Counter[int](), Counter[str]()

    def told(asked: Asked, answer: Answer) -> None:
        statuses[answer.status] += 1
        if answer.status not in EXPECTED or (answer.status == 200 and (not answer.complete or answer.error)):
            errors[f"{answer.status} {answer.error}"[:120]] += 1

    with running(ours(given.folder, port, *given.more), port) as server:
        memory = asyncio.run(_soak(server, given, told))
        time.sleep(1)
        after = server.resident
    print(machine())
    rows = [
        ["seconds", f"{given.seconds:.0f}"],
        ["answers", ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))],
        ["errors", "; ".join(f"{number} x {error}" for error, number in errors.most_common(5)) or "none"],
        ["MB at each tenth", ", ".join(f"{size / 1e6:.0f}" for size in memory)],
        ["growth since the second tenth", f"{100 * (memory[-1] / memory[1] - 1):+.2f}%"],
        ["MB at rest", f"{after / 1e6:.0f}"],
    ]
    print_table(("figure", f"{given.folder.name}, {given.clients} clients"), rows)


async def _soak(server: Server, given: argparse.Namespace, told: Callable[[Asked, Answer], None]) -> list[int]:
    ends, memory = time.monotonic() + given.seconds, list[int]()

    def until_the_end() -> Iterator[Asked]:
        for asked in mixed(1, given.folder.name):
            if time.monotonic() > ends:
                return
            yield asked

    async def look() -> None:
        for _ in range(10):
            await asyncio.sleep(given.seconds / 10)
            memory.append(server.resident)
            print(f"{len(memory)} of 10: {memory[-1] / 1e6:.0f} MB", file=sys.stderr)

    await asyncio.gather(closed_loop(server.port, given.clients, until_the_end(), told=told), look())
    return memory


# (d) Beside llama.cpp's server.


def peers(given: argparse.Namespace) -> None:
    """Tokens a second and P99 between tokens, ours and theirs in turn."""
    if given.gguf is None or given.llama_server is None:
        sys.exit("peers needs --gguf FILE and --llama-server PROGRAM")
    # As many threads as ours takes by itself.
    threads, most = str(quick_config(ModelFolder.open(given.folder)).decisions.threads.value), max(given.at)
    port, other = free_port(), free_port()
    theirs = [
        *(str(given.llama_server), "-m", str(given.gguf), "--port", str(other), "--host", "127.0.0.1"),
        *("-t", threads, "-tb", threads, "-np", str(most), "-c", str(most * 512)),
    ]
    figures: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    with (
        running(ours(given.folder, port, *given.more), port) as here,
        running(theirs, other, "/health") as there,
    ):
        for turn in range(given.rounds + 1):
            for clients in given.at:
                texts = prompts(clients * given.each, given.words, seed=100 * turn + clients)
                # Random weights: an end that one of them meets by chance would be the other's gain.
                for name, server, more in (("aiasst", here, {}), ("llama.cpp", there, {"ignore_eos": True})):
                    answers = ask(server, clients, completions(texts, given.tokens, model=given.folder.name, **more))
                    if turn:
                        gaps = [gap for answer in answers for gap in answer.gaps]
                        firsts = [answer.first for answer in answers]
                        seen = (_tokens_a_second(answers), quantile_ms(gaps, 0.99), quantile_ms(firsts, 0.5))
                        figures.setdefault((name, clients), []).append(seen)
    print(machine())
    print(
        f"{given.folder.name} and {given.gguf.name}, {threads} threads, {given.words} words in, {given.tokens} tokens out"
    )
    rows = []
    for clients in given.at:
        a, b = (np.median(np.array(figures[name, clients]), axis=0) for name in ("aiasst", "llama.cpp"))
        others = (f"{side:.0f}" for figure in (1, 2) for side in (a[figure], b[figure]))
        rows.append([clients, f"{a[0]:.1f}", f"{b[0]:.1f}", f"{a[0] / b[0]:.2f}", *others])
    columns = ("clients", "tok/s aiasst", "tok/s llama.cpp", "ratio", "P99 ITL ms aiasst", "P99 ITL ms llama.cpp")
    print_table((*columns, "P50 TTFT ms aiasst", "P50 TTFT ms llama.cpp"), rows)


# (e) Faults.


def faults(given: argparse.Namespace) -> None:
    """What clients see of a kill, and of a stop; and whether the same question has the same answer afterwards."""
    port, rows = free_port(), []
    question = completions(prompts(1, 12, seed=5), 24, stream=False, model=given.folder.name)
    with running(ours(given.folder, port, *given.more), port) as server:
        (before,) = ask(server, 1, question)
        seen = asyncio.run(_struck(server, given, signal.SIGKILL))
        rows.append(["kill -9", _in_words(seen)])
    began = time.perf_counter()
    with running(ours(given.folder, port, *given.more), port) as server:
        ready = time.perf_counter() - began
        (after,) = ask(server, 1, question)
        answered = time.perf_counter() - began
        same = "the same" if after.text == before.text else "another"
        rows.append(["again on the same port", f"ready after {ready:.2f} s, {same} answer after {answered:.2f} s"])
        seen = asyncio.run(_struck(server, given, signal.SIGTERM))
        status = server.process.wait(60)
        broken = [answer for answer in seen if answer.status == 200 and not answer.complete]
        rows.append(["SIGTERM", f"{_in_words(seen)}; {len(broken)} answers broken off; exit {status}"])
    print(machine())
    print_table(("fault", f"what {given.clients} clients saw"), rows)
    if after.text != before.text or broken:
        sys.exit(1)


async def _struck(server: Server, given: argparse.Namespace, what: signal.Signals) -> list[Answer]:
    """Load, the signal after two seconds, and everything that clients saw until a second after the server's end."""
    stop = asyncio.Event()

    def until_stopped() -> Iterator[Asked]:
        for number in count():
            if stop.is_set():
                return
            yield completions(prompts(1, 20, seed=number), 64, model=given.folder.name)[0]

    async def strike() -> None:
        await asyncio.sleep(2)
        server.process.send_signal(what)
        await asyncio.to_thread(server.process.wait)
        stop.set()

    answers, _ = await asyncio.gather(closed_loop(server.port, given.clients, until_stopped()), strike())
    return answers


def _in_words(answers: Sequence[Answer]) -> str:
    told = Counter(
        "connection lost or refused" if not a.status else f"{a.status}{'' if a.complete else ' cut'}" for a in answers
    )
    return ", ".join(f"{number} x {what}" for what, number in told.most_common())


def main() -> None:
    what = {"added": added, "short": short, "soak": soak, "peers": peers, "faults": faults}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=what)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, help="at once; 8, for soak 64")
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--at", type=int, nargs="+", default=CLIENTS, help="clients beside the peer")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-server", type=Path)
    given, given.more = parser.parse_known_args()
    given.clients = given.clients or (64 if given.what == "soak" else 8)
    what[given.what](given)


if __name__ == "__main__":
    main()
