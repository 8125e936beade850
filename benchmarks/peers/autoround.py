"""AutoRound with its defaults (W4A16: 4 bits, blocks of 128, symmetric, tuned for 200 steps a layer) on the CPU, in its own format.

Embedding and head stay as they are in the checkpoint. Its format is GPTQ's packing without the order of the columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Job, Writer, checkpoint_bytes, int8_head, main, quiet, torch_logits

quiet()

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

BITS, PER_WORD = 4, 8


def quantize(job: Job) -> None:
    """Write the packed checkpoint to the output folder."""
    from auto_round import AutoRound

    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32)
    tool = AutoRound(
        model, AutoTokenizer.from_pretrained(job.checkpoint), scheme="W4A16", device_map="cpu",
        dataset=list(torch.from_numpy(job.calibration).split(8)),
        nsamples=len(job.calibration), seqlen=job.calibration.shape[1],
    )  # fmt: skip
    tool.quantize()
    tool.save_quantized(job.output, format="auto_round", inplace=True)


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a packed checkpoint in fp32, products as [N, K]; activation order is not known here."""
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    plain = {name: value.float() for name, value in tensors.items() if value.is_floating_point()}
    for name, packed in tensors.items():
        if not name.endswith(".qweight"):
            continue
        stem = name.removesuffix("qweight")
        scales = plain.pop(stem + "scales")
        values = nibbles(packed.T).T  # [K, N]: eight rows lie in a word
        zeros = nibbles(tensors[stem + "qzeros"]) + 1  # [groups, N]: the format stores them less one
        group = len(values) // len(scales)
        plain[stem + "weight"] = ((values - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)).T
    return plain


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, words] → the eight values in each, lowest first, [rows, 8 * words]."""
    shifts = torch.arange(PER_WORD, dtype=torch.int32) * BITS
    return ((words.unsqueeze(-1) >> shifts) & (2**BITS - 1)).flatten(1)


def logits(folder: Path, ids: np.ndarray, writer: Writer, with_int8_head: bool) -> int:
    """Logits by torch over the unpacked weights (activations in fp32)."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(unpacked(folder), strict=False)
    if unexpected or set(missing) > {"lm_head.weight"}:
        raise SystemExit(f"the packed checkpoint lacks {missing}, has {unexpected}")
    head = int8_head(model) if with_int8_head else None
    torch_logits(model, ids, writer)
    return checkpoint_bytes(folder, head)


if __name__ == "__main__":
    main("auto-round", quantize, logits)
