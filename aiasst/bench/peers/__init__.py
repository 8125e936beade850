"""Another runtime on the same weights, in a process of its own. Knows how to ask a worker, and nothing of what it runs.

A worker is a file beside this one that needs only its own package, so that it runs in whatever Python has that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiasst.artifacts.model_folder import Shape
from aiasst.errors import ResourceError, UsageError

_WORKERS = {"llama.cpp": "llama_worker.py"}
_PACKAGES = {"llama.cpp": "llama-cpp-python"}
PEERS = tuple(_WORKERS)


@dataclass(frozen=True)
class PeerModel:
    """What to measure beside: a runtime, its file of the same weights, and the Python that has its package."""

    name: str
    file: Path
    python: Path | None = None
    """None: this one."""


class Peer(Protocol):
    """What is measured beside the engine; seconds of each step."""

    name: str
    version: str
    model: str
    model_bytes: int

    def prefill(self, tokens: int, seed: int) -> tuple[float, ...]:
        """Read one prompt."""

    def decode(self, sequences: int, prompt: int, steps: int, seed: int) -> tuple[float, ...]:
        """Write `steps` tokens of each sequence after prompts of `prompt` tokens, which do not count."""


def check_peer(wanted: PeerModel) -> None:
    """Called before the work begins. Raises UsageError where there is no such peer, file or Python."""
    if wanted.name not in _WORKERS:
        raise UsageError(f"'{wanted.name}' is no runtime to compare with", f"there is: {', '.join(PEERS)}")
    if not wanted.file.is_file():
        raise UsageError(f"there is no file {wanted.file}", how_to_make(wanted.name))
    if wanted.python is not None and not wanted.python.is_file():
        raise UsageError(
            f"there is no Python {wanted.python}", "name the program itself: --peer-python VENV/bin/python"
        )


def how_to_make(name: str) -> str:
    """Where a file of the same weights comes from for the peer of this name."""
    return (
        f"{name} needs the same weights as a GGUF file: --peer-model FILE.gguf. benchmarks/peers/llama_cpp_gguf.py in the source "
        "of aiasst makes one from a checkpoint of the Llama architecture; for others, convert_hf_to_gguf.py and llama-quantize "
        "of llama.cpp"
    )


@contextmanager
def started(wanted: PeerModel, shape: Shape, threads: int) -> Iterator[Peer]:
    """The peer, ready to be asked; ended with the block.

    Raises:
        ResourceError: its package is not installed in that Python, or it cannot open the file.
        UsageError: the file holds another model than the one of `shape`.
    """
    python = str(wanted.python or sys.executable)
    worker = Path(__file__).with_name(_WORKERS[wanted.name])
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [python, str(worker), str(wanted.file), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            yield _Worker(wanted, process, log, shape)
        finally:
            process.kill()
            process.communicate()


class _Worker:
    """A process that answers a line of JSON with a line of JSON."""

    def __init__(self, wanted: PeerModel, process: subprocess.Popen[str], log: Any, shape: Shape) -> None:
        python = wanted.python or sys.executable
        self.name = wanted.name
        self._process, self._log = process, log
        about = self._answer()
        if "missing" in about:
            raise ResourceError(
                f"the package '{about['missing']}' of {wanted.name} is not installed in {python}",
                f"{python} -m pip install {_PACKAGES[wanted.name]}, or name a Python that has it: --peer-python PATH",
            )
        self.version, self.model = str(about["version"]), str(about["description"])
        self.model_bytes = wanted.file.stat().st_size
        _refuse_other_model(wanted.file, about, shape)

    def prefill(self, tokens: int, seed: int) -> tuple[float, ...]:
        return self._ask({"tokens": tokens, "seed": seed})

    def decode(self, sequences: int, prompt: int, steps: int, seed: int) -> tuple[float, ...]:
        return self._ask({"sequences": sequences, "prompt": prompt, "steps": steps, "seed": seed})

    def _ask(self, question: dict[str, int]) -> tuple[float, ...]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        return tuple(self._answer()["steps"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._dead()
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ResourceError(f"{self.name} failed: {answer['failed']}", "is it a GGUF file that this version knows?")
        return answer

    def _dead(self) -> ResourceError:
        self._log.seek(0)
        words = self._log.read().strip().splitlines()[-1:] or ["it said nothing"]
        return ResourceError(f"the process of {self.name} ended: {words[0]}", "try without --against")


def _refuse_other_model(file: Path, about: dict[str, Any], shape: Shape) -> None:
    theirs = (about["layers"], about["hidden"], about["vocabulary"])
    ours = (shape.layers, shape.hidden_size, shape.vocab_size)
    if theirs != ours:
        words = [
            f"{layers} layers, hidden {hidden}, vocabulary {vocabulary}"
            for layers, hidden, vocabulary in (theirs, ours)
        ]
        raise UsageError(
            f"{file} is another model ({words[0]}) than this folder ({words[1]})", "make it from the same checkpoint"
        )
