"""Write the hostile twin of a Llama-type checkpoint: the same function, with the outlier channels that large models have.

usage: hostile.py CHECKPOINT FOLDER [--share 0.01] [--factor 30] [--seed 0]

In each layer a seeded share of the channels (at least 2) of both norms is scaled by the factor, and the columns of the weights
behind them (q, k, v; gate, up) by its inverse. The twin is written in float32, so that a half-precision original loses nothing,
and must give the original's logits to 1e-4 before anything is written. Knows nothing of quantization.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

TOLERANCE = 1e-4
BEHIND = {  # norm → the projections that read its output, as they are named in a layer of the Llama family
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def scalings(model: PreTrainedModel) -> Iterator[tuple[torch.nn.Parameter, list[torch.nn.Parameter]]]:
    """(gain [K] of a norm, weights [N, K] behind it), two pairs a layer."""
    for layer in model.get_submodule("model.layers").children():
        for norm, projections in BEHIND.items():
            yield layer.get_parameter(f"{norm}.weight"), [layer.get_parameter(f"{p}.weight") for p in projections]


@torch.no_grad()
def make_hostile(model: PreTrainedModel, share: float, factor: float, seed: int) -> int:
    """Scale `model` in place; the number of channels scaled."""
    generator = torch.Generator().manual_seed(seed)
    scaled = 0
    for gain, weights in scalings(model):
        count = max(2, round(share * len(gain)))
        channels = torch.randperm(len(gain), generator=generator)[:count]
        gain[channels] *= factor
        for weight in weights:
            weight[:, channels] /= factor
        scaled += count
    return scaled


@torch.no_grad()
def largest_difference(model: PreTrainedModel, other: PreTrainedModel, seed: int, tokens: int = 256) -> float:
    """Between the logits of the two, on `tokens` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    return float((model(ids).logits - other(ids).logits).abs().max())


def load(folder: Path) -> PreTrainedModel:
    """The checkpoint in float32, on the CPU."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def write_twin(checkpoint: Path, folder: Path, share: float = 0.01, factor: float = 30.0, seed: int = 0) -> str:
    """Write the twin of `checkpoint` into `folder`; a line on what was done."""
    original = load(checkpoint)
    twin = copy.deepcopy(original)
    scaled = make_hostile(twin, share, factor, seed)
    difference = largest_difference(original, twin, seed)
    if difference > TOLERANCE:
        sys.exit(f"the twin's logits differ by {difference:.1e}, more than {TOLERANCE:.0e}: nothing was written")
    twin.save_pretrained(folder)
    for file in sorted(checkpoint.glob("tokenizer*")):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2))
    return f"{scaled} channels x {factor:g} in {folder}; logits differ by {difference:.1e} at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--factor", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    print(write_twin(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
