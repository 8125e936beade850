"""A program for the Python that has llama_cpp: measures a GGUF file on demand. Imports nothing of aiasst, which may not be there.

usage: llama_worker.py MODEL.gguf THREADS

It writes one JSON line when it is ready, then reads one JSON line a measurement and answers each with one:
    ← {"version": …, "description": …, "vocabulary": …, "layers": …, "hidden": …}   or {"missing": "llama_cpp"}, or {"failed": why}
    → {"tokens": 512, "seed": 0}                                        a prompt read to the logits of its last token
    → {"sequences": 8, "prompt": 16, "steps": 32, "seed": 0}            a token each a step, after prompts that do not count
    ← {"steps": [seconds, …]}

The next tokens are random ones, as in llama.cpp's own bench: what it takes to choose them is not counted.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import sys
import time
from typing import Any, TextIO

_UBATCH = 512
_BUCKET = 256


class Worker:
    """A model, and a context for each number of sequences, made when it is first needed."""

    def __init__(self, api: Any, path: str, threads: int) -> None:
        self._api, self._threads = api, threads
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot open {path}")
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        self._contexts: dict[tuple[int, int], Any] = {}

    def about(self) -> dict[str, Any]:
        """What the model is, so that another one is noticed."""
        words = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, words, len(words))
        return {
            "version": self._api.__version__,
            "description": words.value.decode(errors="replace"),
            "vocabulary": self.vocabulary,
            "layers": self._api.llama_model_n_layer(self._model),
            "hidden": self._api.llama_model_n_embd(self._model),
        }

    def prefill(self, tokens: int, seed: int) -> list[float]:
        """Seconds of each batch of a prompt of `tokens` random tokens."""
        context = self._context(1, tokens + 1)
        ids = self._ids(tokens, seed)
        parts = [ids[start : start + _UBATCH] for start in range(0, tokens, _UBATCH)]
        return [
            self._run(context, [(token, number * _UBATCH + place, 0) for place, token in enumerate(part)], last=1)
            for number, part in enumerate(parts)
        ]

    def decode(self, sequences: int, prompt: int, steps: int, seed: int) -> list[float]:
        """Seconds of each of `steps` tokens of every sequence, the prompts not counted."""
        context = self._context(sequences, prompt + steps + 1)
        ids = self._ids(sequences * (prompt + steps), seed)
        for sequence in range(sequences):
            own = [(ids.pop(), place, sequence) for place in range(prompt)]
            self._run(context, own, last=1)
        return [
            self._run(context, [(ids.pop(), prompt + step, sequence) for sequence in range(sequences)], last=sequences)
            for step in range(steps)
        ]

    def _ids(self, count: int, seed: int) -> list[int]:
        return random.Random(seed).choices(range(self.vocabulary), k=count)

    def _context(self, sequences: int, tokens: int) -> Any:
        """An empty one with room for so many sequences of so many tokens each."""
        each = -(-tokens // _BUCKET) * _BUCKET
        if (sequences, each) not in self._contexts:
            settings = self._api.llama_context_default_params()
            settings.n_ctx, settings.n_seq_max = sequences * each, sequences
            settings.n_batch = settings.n_ubatch = _UBATCH
            settings.n_threads = settings.n_threads_batch = self._threads
            context = self._api.llama_init_from_model(self._model, settings)
            if not context:
                raise SystemExit(f"llama.cpp makes no context of {sequences} sequences of {each} tokens")
            self._contexts[sequences, each] = context
        context = self._contexts[sequences, each]
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        return context

    def _run(self, context: Any, tokens: list[tuple[int, int, int]], last: int) -> float:
        """Seconds to run (id, place, sequence) in one batch; the `last` of them get logits."""
        began = time.perf_counter()
        batch = self._api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, (token, place, sequence) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index >= len(tokens) - last
        code = self._api.llama_decode(context, batch)
        self._api.llama_synchronize(context)
        self._api.llama_batch_free(batch)
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")
        return time.perf_counter() - began


def serve(worker: Worker, questions: TextIO, answers: TextIO) -> None:
    """Measure what is asked for until nobody asks any more."""
    say(answers, worker.about())
    for line in questions:
        asked = json.loads(line)
        steps = worker.decode(**asked) if "sequences" in asked else worker.prefill(**asked)
        say(answers, {"steps": steps})


def say(answers: TextIO, document: dict[str, Any]) -> None:
    """One line, now."""
    answers.write(json.dumps(document) + "\n")
    answers.flush()


def main() -> None:
    """Answer on what was stdout; whatever the library writes there goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        api = importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        say(answers, {"missing": error.name})
        return
    try:
        worker = Worker(api, sys.argv[1], int(sys.argv[2]))
        serve(worker, sys.stdin, answers)
    except SystemExit as error:
        say(answers, {"failed": str(error)})


if __name__ == "__main__":
    main()
