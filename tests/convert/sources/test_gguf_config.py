"""What a GGUF file leaves unsaid is read as llama.cpp reads it, not as the defaults of transformers would have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from aiasst.convert.sources.gguf_config import complete, llama3_factors
from aiasst.errors import UnsupportedModelError

SHAPES = {"token_embd.weight": (100, 64)}


def config(architecture: str, **own: Any) -> dict[str, Any]:
    sizes = {"block_count": 2, "context_length": 64, "embedding_length": 64, "attention.head_count": 4}
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in {**sizes, **own}.items()}
    return complete({}, {"general.architecture": architecture, **metadata}, SHAPES, None)


def test_heads_follow_from_the_width_where_nothing_is_said() -> None:
    # transformers would take 128 for qwen3 and 256 for gemma.
    for architecture in ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"):
        made = config(architecture)
        assert (made["head_dim"], made["num_key_value_heads"]) == (16, 4)
    assert config("qwen3", attention__key_length=32)["head_dim"] == 32


def test_ids_that_are_not_said_are_none() -> None:
    made = config("phi3")
    assert made["pad_token_id"] is made["bos_token_id"] is made["eos_token_id"] is None


def test_the_rotary_base_is_read() -> None:
    assert config("llama")["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert config("llama", rope__freq_base=5e5)["rope_parameters"]["rope_theta"] == 5e5
    gemma = config("gemma3", rope__freq_base=1e6, rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert gemma["rope_parameters"] == {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }


def test_the_largest_gemmas_scale_scores_by_their_width() -> None:
    assert config("gemma2", attention__key_length=128)["query_pre_attn_scalar"] == 128
    large = {"block_count": 46, "embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}
    assert config("gemma2", **large)["query_pre_attn_scalar"] == 144
    large = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    assert config("gemma3", **large)["query_pre_attn_scalar"] == 168


def test_a_head_that_turns_in_part_only_is_refused_where_it_cannot_be_said() -> None:
    assert config("phi3", rope__dimension_count=12)["rope_parameters"]["partial_rotary_factor"] == 0.75
    with pytest.raises(UnsupportedModelError, match="12 of 16 rotary dimensions"):
        config("llama", rope__dimension_count=12)


@pytest.mark.parametrize(("base", "head_dim", "factor"), [(5e5, 64, 32.0), (5e5, 128, 8.0), (1e4, 80, 4.0)])
def test_the_factors_of_llama3_are_those_of_transformers(base: float, head_dim: int, factor: float) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 8192
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](
        transformers.LlamaConfig(head_dim=head_dim, rope_parameters=rope), torch.device("cpu")
    )
    plain = base ** -(np.arange(0, head_dim, 2) / head_dim)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_factors(base, head_dim, factor), rtol=1e-4)
