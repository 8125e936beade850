"""Write a random checkpoint of the Llama-3.2-1B shape (bf16 safetensors), to measure time and memory without a download.

usage: random_llama.py FOLDER [--shape 1b|135m] [--layers N]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
"""What the shape of 135 million parameters has otherwise."""
STORY = Path(__file__).resolve().parents[1] / "checkpoints" / "story-7m"


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Parameter name → shape ([out, in] for matrices), in the order of the file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        table |= {
            stem + "input_layernorm.weight": (hidden,),
            stem + "self_attn.q_proj.weight": (hidden, hidden),
            stem + "self_attn.k_proj.weight": (kv, hidden),
            stem + "self_attn.v_proj.weight": (kv, hidden),
            stem + "self_attn.o_proj.weight": (hidden, hidden),
            stem + "post_attention_layernorm.weight": (hidden,),
            stem + "mlp.gate_proj.weight": (inner, hidden),
            stem + "mlp.up_proj.weight": (inner, hidden),
            stem + "mlp.down_proj.weight": (hidden, inner),
        }
    return table | {"model.norm.weight": (hidden,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=("1b", "135m"), default="1b")
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    config: dict[str, Any] = CONFIG | (SMALL if arguments.shape == "135m" else {})
    if arguments.layers:
        config["num_hidden_layers"] = arguments.layers
    generator = torch.Generator().manual_seed(0)

    def parameter(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)

    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(STORY / name, arguments.folder / name)  # ids below 4096 are enough to feed it
    weights = {name: parameter(shape) for name, shape in shapes(config).items()}
    save_file(weights, arguments.folder / "model.safetensors", metadata={"format": "pt"})
    print(f"{sum(w.numel() for w in weights.values()) / 1e9:.3f} billion parameters in {arguments.folder}")


if __name__ == "__main__":
    main()
