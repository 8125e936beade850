"""What the scripts of the peers share: their command line, logits of a torch model, sizes. Knows no peer, and no aiasst.

Each script has two commands, so that time and memory of quantizing are measured apart from scoring:
    quantize --checkpoint DIR --onnx DIR --calibration IDS.npz --output DIR [--variant NAME]
    logits   --model DIR --ids IDS.npz --output LOGITS.npy [--int8-head]
`logits` writes float32 [windows, window - window // 2, vocabulary], the predictions of each window's second half, and prints
one JSON line: {"bytes": all that the weights take, "version": name and version of the peer}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HEAD_BLOCK = 128
"""Weights that share a scale in an int8 head, as in the recipes of aiasst."""


@dataclass(frozen=True)
class Job:
    """Arguments of `quantize`."""

    checkpoint: Path
    """A Hugging Face folder."""
    onnx: Path
    """The same as an fp32 model folder."""
    calibration: np.ndarray
    """Token ids, int64 [sequences, length]."""
    output: Path
    variant: str


def main(
    package: str, quantize: Callable[[Job], None], logits: Callable[[Path, np.ndarray, Writer, bool], int]
) -> None:
    """Run the command that is asked for; `logits` returns the bytes of the weights."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("quantize")
    first.add_argument("--variant", default="")
    for name in ("checkpoint", "onnx", "calibration", "output"):
        first.add_argument(f"--{name}", type=Path, required=True)
    second = commands.add_parser("logits")
    second.add_argument("--int8-head", action="store_true")
    for name in ("model", "ids", "output"):
        second.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "quantize":
        arguments.output.mkdir(parents=True, exist_ok=True)
        ids = read_ids(arguments.calibration)
        quantize(Job(arguments.checkpoint, arguments.onnx, ids, arguments.output, arguments.variant))
        return
    ids = read_ids(arguments.ids)
    taken = logits(arguments.model, ids, Writer(arguments.output, ids), arguments.int8_head)
    print(json.dumps({"bytes": taken, "version": f"{package} {version(package)}"}))


def read_ids(path: Path) -> np.ndarray:
    """int64 [sequences, length] from an .npz file."""
    with np.load(path) as archive:
        return archive["input_ids"].astype(np.int64)


class Writer:
    """The file of logits, filled window by window."""

    def __init__(self, path: Path, ids: np.ndarray) -> None:
        self.path, self.windows, self.window = path, *ids.shape
        self.file: Any = None

    @property
    def scored(self) -> slice:
        """The rows of a window's logits that predict its second half."""
        return slice(self.window // 2 - 1, self.window - 1)

    def put(self, index: int, logits: np.ndarray) -> None:
        """float32 [window, vocabulary] of window `index`."""
        if self.file is None:
            shape = (self.windows, self.window - self.window // 2, logits.shape[-1])
            self.file = np.lib.format.open_memmap(self.path, "w+", np.float32, shape)
        self.file[index] = logits[self.scored]


def torch_logits(model: Any, ids: np.ndarray, writer: Writer) -> None:
    """Logits of a transformers model, one window at a time."""
    import torch

    with torch.inference_mode():
        for index, window in enumerate(ids):
            writer.put(index, model(torch.from_numpy(window[None])).logits[0].float().numpy())


def int8_head(model: Any) -> int:
    """Round the shared matrix of embedding and head to int8 in blocks, in place; the bytes it then takes.

    For tools that leave it in floating point, to compare at equal size. It costs next to nothing in accuracy.
    """
    import torch

    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        blocks = weight.float().unflatten(1, (-1, HEAD_BLOCK))
        scales = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
        rounded = ((blocks / scales).round().clamp(-127, 127) * scales).flatten(1)
        weight.copy_(rounded)
        model.get_input_embeddings().weight.copy_(rounded)
    return weight.numel() + 4 * scales.numel()


def tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each tensor in the safetensors files of a folder."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield name, end - begin


def checkpoint_bytes(folder: Path, head: int | None = None) -> int:
    """Bytes of all tensors of a checkpoint; with `head`, that many instead of what its embedding and head take."""
    both = ("model.embed_tokens.", "lm_head.")
    return (head or 0) + sum(size for name, size in tensors(folder) if head is None or not name.startswith(both))


def quiet() -> None:
    """No downloads, no telemetry."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "OLIVE_DISABLE_TELEMETRY"):
        os.environ[name] = "1"


def elements(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)
