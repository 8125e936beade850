"""Time, memory and speed at the Llama-3.2-1B shape: convert, quantize, load, prefill 128, decode at 1 and 8 sequences.

usage: llama_1b.py CHECKPOINT WORK [--recipes int4 int4-fast] [--rounds 5] [--skip-making]
CHECKPOINT is what random_llama.py wrote; WORK takes the model folders.

`plain` is a bare loop over ONNX Runtime on the same folder (no scheduler, no sampling): what a script by hand would reach.
It is interleaved with the engine, so that the ratio holds although the machine stalls.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.engine import Engine
from aiasst.engine.requests import Request, Sampling
from aiasst.runtime.session import DecoderSession, SessionSettings
from measure import aiasst, folder_bytes, interleaved, machine, print_table, summary

PROMPT, ANSWER = 16, 48


class Plain:
    """One session and one cache by hand: the loop of a script."""

    def __init__(self, folder: ModelFolder, threads: int, capacity: int = 256, slots: int = 8) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = ort.InferenceSession(str(folder.graph), options, providers=["CPUExecutionProvider"])
        shape = folder.manifest.shape
        assert shape is not None
        names = [i.name for i in self.session.get_inputs() if i.name.startswith("past_key_values")]
        self.cache = {n: np.zeros((slots, shape.kv_heads, capacity, shape.head_dim), np.float32) for n in names}

    def step(self, ids: np.ndarray, length: int) -> np.ndarray:
        """One run over the first rows; `length` counts the tokens of each row, the new ones included. Returns ids [rows]."""
        rows = len(ids)
        binding = self.session.io_binding()
        binding.bind_output("logits")
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((rows, length), np.int64))
        for name, array in self.cache.items():
            part = array[:rows]
            binding.bind_input(name, "cpu", 0, np.float32, part.shape, part.ctypes.data)
            binding.bind_output(
                name.replace("past_key_values", "present"), "cpu", 0, np.float32, part.shape, part.ctypes.data
            )
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()[:, -1].argmax(-1)

    def decode(self, sequences: int) -> float:
        """Tokens per second of `sequences` answers of ANSWER tokens, prompts not counted."""
        ids = np.arange(sequences * PROMPT, dtype=np.int64).reshape(sequences, PROMPT) % 4000 + 4
        tokens = self.step(ids, PROMPT)
        began = time.perf_counter()
        for done in range(1, ANSWER):
            tokens = self.step(tokens[:, None].astype(np.int64), PROMPT + done)
        return sequences * (ANSWER - 1) / (time.perf_counter() - began)


def engine_decode(session: DecoderSession, sequences: int) -> float:
    """Tokens per second of the product's engine on the same work, while all of the sequences are under way."""
    engine = Engine(session, slots=sequences)
    for row in range(sequences):
        prompt = tuple(int(i) % 4000 + 4 for i in range(row * PROMPT, (row + 1) * PROMPT))
        engine.submit(Request(str(row), prompt, Sampling(max_tokens=ANSWER, temperature=0)))
    begun: set[str] = set()
    while len(begun) < sequences:
        begun |= {event.request_id for event in engine.step()}
    counted, began = 0, time.perf_counter()
    finished = False
    while not finished:  # the first to end was the first to begin: from there on the batch is smaller than asked for
        events = engine.step()
        counted += sum(event.token is not None for event in events)
        finished = any(event.finished for event in events)
    speed = counted / (time.perf_counter() - began)
    while engine.busy:
        engine.step()
    return speed


def prefill(session: DecoderSession, tokens: int = 128) -> float:
    """Prompt tokens per second at batch 1."""
    rows = [
        np.zeros((1, session.kv_heads, 256, session.head_dim), session.cache_dtype) for _ in range(2 * session.layers)
    ]
    began = time.perf_counter()
    session.step(np.arange(4, 4 + tokens, dtype=np.int64)[None], [tokens], rows)
    return tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["int4", "int4-fast"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-making", action="store_true", help="use the folders that are in WORK already")
    arguments = parser.parse_args()
    print(machine())
    folders = {recipe: arguments.work / recipe for recipe in arguments.recipes}
    if not arguments.skip_making:
        make(arguments.checkpoint, arguments.work / "fp32", folders)
    rows = []
    for recipe, path in folders.items():
        folder, settings = ModelFolder.open(path), SessionSettings(threads=arguments.threads)
        began = time.perf_counter()
        session = DecoderSession.open(folder, settings)
        load = time.perf_counter() - began
        plain = Plain(folder, arguments.threads)
        figures = interleaved(
            arguments.rounds,
            lambda s=session: prefill(s),
            lambda s=session: engine_decode(s, 1),
            lambda p=plain: p.decode(1),
            lambda s=session: engine_decode(s, 8),
            lambda p=plain: p.decode(8),
        )
        rows.append((recipe, f"{folder_bytes(path) / 1e6:.0f}", f"{load:.2f}", *map(summary, figures)))
    columns = ("recipe", "MB", "load s", "prefill 128 tok/s", "decode 1 tok/s", "plain 1", "decode 8 tok/s", "plain 8")
    print_table(columns, rows)


def make(checkpoint: Path, fp32: Path, folders: dict[str, Path]) -> None:
    """Convert and quantize in processes of their own, with time and peak memory."""
    rows = []
    ended = aiasst("convert", str(checkpoint), "-o", str(fp32), "--force", "--quiet")
    rows.append(("convert", f"{ended.seconds:.0f}", f"{ended.peak_bytes / 1e9:.2f}", f"{folder_bytes(fp32) / 1e6:.0f}"))
    for recipe, path in folders.items():
        ended = aiasst("quantize", str(fp32), "--recipe", recipe, "-o", str(path), "--force", "--quiet")
        rows.append(
            (
                f"quantize {recipe}",
                f"{ended.seconds:.0f}",
                f"{ended.peak_bytes / 1e9:.2f}",
                f"{folder_bytes(path) / 1e6:.0f}",
            )
        )
    print_table(("step", "seconds", "peak GB", "MB on disk"), rows)


if __name__ == "__main__":
    main()
