"""AutoRound with its defaults (W4A16: 4 bits, blocks of 128, symmetric, 200 steps a layer), run in fp32 on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Job, Writer, checkpoint_bytes, int8_head, main, quiet, torch_logits

quiet()

import torch  # noqa: E402
from auto_round import AutoRound  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

PACKED, ROUNDED = "packed", "rounded"


def quantize(job: Job) -> None:
    """Write the packed checkpoint, and beside it one with the rounded weights in fp32."""
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32)
    batches = list(torch.from_numpy(job.calibration).split(8))
    tool = AutoRound(
        model, AutoTokenizer.from_pretrained(job.checkpoint), scheme="W4A16", dataset=batches, device_map="cpu",
        nsamples=len(job.calibration), seqlen=job.calibration.shape[1], seed=42,
    )  # fmt: skip
    rounded, _ = tool.quantize()
    rounded.save_pretrained(job.output / ROUNDED)
    tool.save_quantized(job.output / PACKED, format="auto_gptq", inplace=True)


def logits(folder: Path, ids: np.ndarray, writer: Writer, with_int8_head: bool) -> int:
    """Logits by torch over the rounded weights (activations in fp32)."""
    model = AutoModelForCausalLM.from_pretrained(folder / ROUNDED, dtype=torch.float32).eval()
    head = int8_head(model) if with_int8_head else None
    torch_logits(model, ids, writer)
    return checkpoint_bytes(folder / PACKED, head)


if __name__ == "__main__":
    main("auto-round", quantize, logits)
