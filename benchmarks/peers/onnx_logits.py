"""Logits of an ONNX folder of aiasst's signature (its own, or one that ONNX Runtime's quantizers made), by ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import Job, Writer, main

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def write_logits(graph: Path, ids: np.ndarray, writer: Writer) -> None:
    """One window at a time, whole, with empty caches."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feeds = {"all_logits": np.array(True)}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            _, heads, _, size = value.shape
            feeds[value.name] = np.zeros((1, heads, 0, size), _DTYPES[value.type])
    for index, window in enumerate(ids):
        feeds |= {"input_ids": window[None], "attention_mask": np.ones((1, len(window)), np.int64)}
        writer.put(index, session.run(["logits"], feeds)[0][0])


def quantize(job: Job) -> None:
    """Not here: other scripts make the folder."""
    raise SystemExit("onnx_logits.py only scores")


def logits(folder: Path, ids: np.ndarray, writer: Writer, int8_head: bool) -> int:
    """Logits of a model folder; the bytes of all its weights as they lie on disk."""
    write_logits(folder / "model.onnx", ids, writer)
    return sum(file.stat().st_size for file in folder.glob("model.onnx*"))


if __name__ == "__main__":
    main("onnxruntime", quantize, logits)
