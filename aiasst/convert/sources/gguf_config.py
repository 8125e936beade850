"""The configuration of a model from the metadata of a GGUF file. Reads no weight but the table of rotary factors.

transformers maps the names; what it leaves at its defaults (head size, rotary base and scaling, windows, score scale) is set
here as llama.cpp reads it, because a default that happens to differ gives a model that runs and is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import UnsupportedModelError

Floats = npt.NDArray[np.floating[Any]]

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}
"""GGUF architecture → model type of transformers; each is checked, unpacked against original, by a test."""

DEFAULT_ROPE_BASE = 10000.0

# Llama 3.1 and later: what the factors in rope_freqs.weight were made with (github.com/meta-llama/llama-models).
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192

# Layers of the models whose attention scores are scaled by hidden/heads and not by the head size, as llama.cpp tells them.
_SCALED_BY_HIDDEN = {("gemma2", 46), ("gemma3", 62)}

_INSTEAD = "use the Hugging Face form of this model"


def architecture_of(model_type: str) -> str:
    """The GGUF architecture of a model type of transformers."""
    return next(name for name, known in ARCHITECTURES.items() if known == model_type)


def refuse_unknown(name: str, metadata: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError where the architecture of the GGUF file called `name` is not known here."""
    architecture = str(metadata["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{name} holds a model of the architecture '{architecture}', which is not read from GGUF here",
            f"known are {', '.join(sorted(ARCHITECTURES))}; use the Hugging Face form of this model",
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise UnsupportedModelError(f"{name} holds a mixture of experts, which is not read from GGUF here", _INSTEAD)


def complete(
    mapped: Mapping[str, Any],
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Floats | None,
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        mapped: What transformers makes of the metadata.
        metadata: Keys and values of the GGUF file, of a known architecture.
        shapes: Tensor name → shape, rows first.
        rope_factors: [head_dim / 2], what each rotary frequency is divided by (rope_freqs.weight); None = nothing.

    Raises:
        UnsupportedModelError: a rotary scaling that is not known here.
    """
    architecture = str(metadata["general.architecture"])
    config = dict(mapped) | {
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": shapes["token_embd.weight"][0],
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "tie_word_embeddings": "output.weight" not in shapes,
        # Said even where the file has none: the defaults of transformers are ids of other vocabularies.
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    if architecture == "gpt2":
        return config | {"n_positions": own["context_length"], "n_inner": own["feed_forward_length"]}
    attention = _attention(architecture, own)
    return config | attention | _rotary(architecture, own, attention["head_dim"], rope_factors)


def _attention(architecture: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Heads, windows and scales."""
    hidden, heads = own["embedding_length"], own["attention.head_count"]
    head_dim = own.get("attention.key_length", hidden // heads)
    config: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
    }
    if architecture in ("phi3", "gemma2", "gemma3"):
        config["sliding_window"] = own.get("attention.sliding_window") or None
    if architecture in ("gemma2", "gemma3"):
        by_hidden = (architecture, own["block_count"]) in _SCALED_BY_HIDDEN
        config["query_pre_attn_scalar"] = hidden // heads if by_hidden else head_dim
    if architecture == "gemma2":
        config["attn_logit_softcapping"] = own.get("attn_logit_softcapping", 50.0)
        config["final_logit_softcapping"] = own.get("final_logit_softcapping", 30.0)
    return config


def _rotary(architecture: str, own: Mapping[str, Any], head_dim: int, factors: Floats | None) -> dict[str, Any]:
    """The rotary position embedding: base, scaling, and the share of the head that turns."""
    base = float(own.get("rope.freq_base", DEFAULT_ROPE_BASE))
    parameters: dict[str, Any] = {"rope_theta": base, **_scaling(own)}
    if factors is not None:
        parameters |= _llama3(factors, base, head_dim)
    turning = own.get("rope.dimension_count", head_dim)
    if turning != head_dim:
        if architecture != "phi3":
            raise UnsupportedModelError(f"only {turning} of {head_dim} rotary dimensions in a {architecture}", _INSTEAD)
        parameters["partial_rotary_factor"] = turning / head_dim
    if architecture != "gemma3":
        return {"rope_parameters": parameters}
    # Scaling is for the layers that see everything; the local ones have a base of their own.
    local = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base_swa", DEFAULT_ROPE_BASE))}
    return {"rope_parameters": {"full_attention": parameters, "sliding_attention": local}}


def _scaling(own: Mapping[str, Any]) -> dict[str, Any]:
    """Context extension as the metadata say it: none, linear or YaRN (arXiv:2309.00071)."""
    kind = own.get("rope.scaling.type", "linear" if "rope.scale_linear" in own else "none")
    factor = float(own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0)))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and "rope.scaling.original_context_length" in own:
        original = own["rope.scaling.original_context_length"]
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedModelError(f"the rotary scaling '{kind}' is not read from GGUF here", _INSTEAD)


def _llama3(factors: Floats, base: float, head_dim: int) -> dict[str, Any]:
    """The parameters that give `factors`. Raises UnsupportedModelError where those of Llama 3 do not."""
    factor = float(factors.max())
    if not np.allclose(llama3_factors(base, head_dim, factor), factors, rtol=1e-4):
        raise UnsupportedModelError("the rotary factors in the GGUF file are not those of Llama 3", _INSTEAD)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def llama3_factors(base: float, head_dim: int, factor: float) -> Floats:
    """What Llama 3.1 and later divide each rotary frequency by: [head_dim / 2], 1 for the short waves, `factor` for the long."""
    waves = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    # 0 for waves longer than the context of training, 1 for those of a quarter of it or less, a line between.
    smooth = np.clip((_LLAMA3_CONTEXT / waves - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    divided: Floats = 1.0 / ((1.0 - smooth) / factor + smooth)
    return divided
