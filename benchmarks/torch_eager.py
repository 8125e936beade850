"""Decode and prefill of a model folder against torch in eager mode on the checkpoint it comes from, taken in turn.

usage: torch_eager.py CHECKPOINT FOLDER [--rounds 5] [--threads 2] [--tokens 16]

torch runs transformers' own model with its key-value cache, in fp32 and in bf16, one sequence, the same number of threads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from llama_1b import engine_decode, prefill
from transformers import AutoModelForCausalLM

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.runtime.session import DecoderSession, SessionSettings
from measure import interleaved, machine, print_table, summary

PROMPT = 128


def decode(model: torch.nn.Module, tokens: int) -> float:
    """Tokens a second after a short prompt."""
    with torch.inference_mode():
        out = model(torch.arange(4, 20)[None], use_cache=True)
        began = time.perf_counter()
        for _ in range(tokens):
            last = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(last, past_key_values=out.past_key_values, use_cache=True)
        return tokens / (time.perf_counter() - began)


def read(model: torch.nn.Module) -> float:
    """Tokens a second of a prompt."""
    with torch.inference_mode():
        began = time.perf_counter()
        model(torch.arange(4, 4 + PROMPT)[None], use_cache=True, logits_to_keep=1)
        return PROMPT / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    models = {
        name: AutoModelForCausalLM.from_pretrained(given.checkpoint, dtype=kind, attn_implementation="sdpa").eval()
        for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    session = DecoderSession.open(ModelFolder.open(given.folder), SessionSettings(threads=given.threads))
    figures = interleaved(
        given.rounds,
        lambda: engine_decode(session, 1),
        lambda: prefill(session, PROMPT),
        *(
            work
            for model in models.values()
            for work in (lambda m=model: decode(m, given.tokens), lambda m=model: read(m))
        ),
    )
    print(machine())
    rows = [(f"aiasst, {given.folder.name}", summary(figures[0]), summary(figures[1]), "", "")]
    for number, name in enumerate(models, start=1):
        theirs = figures[2 * number : 2 * number + 2]
        ratios = (f"{max(figures[i]) / max(theirs[i]):.1f}x" for i in (0, 1))
        rows.append((f"torch eager, {name}", *map(summary, theirs), *ratios))
    print_table(("runtime", "decode 1, tok/s", f"prefill {PROMPT}, tok/s", "decode ratio", "prefill ratio"), rows)


if __name__ == "__main__":
    main()
