"""config.json → a shape: what a family leaves out, what is refused, and that the listed models are what they say they are."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.artifacts.shipped import story_checkpoint
from aiasst.errors import CheckpointError, UnsupportedModelError
from aiasst.profile import configurations
from aiasst.profile.configurations import shape_of

LISTED: list[dict[str, Any]] = json.loads((resources.files("aiasst.profile") / "models.json").read_text())
TINY: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize("model", LISTED, ids=lambda model: model["id"])
def test_a_listed_model_has_the_parameters_that_its_publisher_counts(model: dict[str, Any]) -> None:
    assert model["source"] == f"https://huggingface.co/{model['id']}"
    assert shape_of(model["config"]).parameters == pytest.approx(model["parameters"], rel=1e-3)


def test_the_list_spans_what_it_promises() -> None:
    sizes = [model["parameters"] for model in LISTED]
    assert min(sizes) < 0.2e9
    assert 69e9 < max(sizes) < 75e9
    assert len({model["id"] for model in LISTED}) == len(LISTED) >= 30


@pytest.mark.parametrize("model_type", sorted(configurations._DEFAULTS))
def test_defaults_are_those_of_the_family(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    family = transformers.CONFIG_MAPPING[model_type]()
    for key, value in configurations._DEFAULTS[model_type].items():
        assert getattr(family, key) == value, key


def test_the_story_checkpoint() -> None:
    config = json.loads((story_checkpoint() / "config.json").read_text())
    weights = (story_checkpoint() / "model.safetensors").stat().st_size
    shape = shape_of(config, weight_bytes=weights)
    assert (shape.layers, shape.hidden_size, shape.vocab_size) == (8, 256, 4096)
    assert shape.parameters == pytest.approx(weights / 2, rel=0.01)
    assert shape.cache_bytes_per_token == 8192


def test_what_a_configuration_leaves_out_is_filled_in() -> None:
    shape = shape_of({key: value for key, value in TINY.items() if key != "num_key_value_heads"})
    assert (shape.kv_heads, shape.head_dim, shape.tied_embedding, shape.gated) == (4, 16, False, True)
    assert shape.windows == ()


def test_older_names_are_understood() -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    shape = shape_of(gpt2)
    assert not shape.gated
    assert shape.tied_embedding
    assert shape.parameters == pytest.approx(124e6, rel=0.01)


def test_the_text_part_of_a_composite_model_is_read() -> None:
    nested = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    shape = shape_of({"model_type": "gemma3", "vision_config": {}, "text_config": nested}, weight_bytes=10)
    assert (shape.vocab_size, shape.heads, shape.kv_heads, shape.head_dim) == (262208, 8, 4, 256)
    assert shape.windows[:6] == (4096,) * 5 + (None,)


def test_windows_and_long_contexts() -> None:
    mistral = TINY | {"model_type": "mistral", "sliding_window": 128}
    assert shape_of(mistral).windows == (128, 128)
    assert shape_of(mistral | {"sliding_window": None}).windows == ()
    assert shape_of(mistral | {"layer_types": ["full_attention", "sliding_attention"]}).windows == (None, 128)
    longrope = TINY | {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64}
    assert shape_of(longrope).context_length == 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "no decoder"),
        ({"is_encoder_decoder": True}, "no decoder"),
        ({"num_local_experts": 8}, "mixture of 8 experts"),
        ({"num_experts": 64}, "mixture of 64 experts"),
    ],
)
def test_what_is_not_predicted_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        shape_of(TINY | change)


@pytest.mark.parametrize("value", [None, 0, -3, True, "12", 1.5, 2**40])
def test_a_number_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        shape_of(TINY | {"num_hidden_layers": value})


def test_more_layers_than_any_model_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match="layers"):
        shape_of(TINY | {"num_hidden_layers": 2**30})


def test_more_heads_than_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="heads"):
        shape_of(TINY | {"num_attention_heads": 128})


def test_weights_that_are_not_of_the_shape_are_refused() -> None:
    big = TINY | {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 32000, "dtype": "bfloat16"}
    right = 2 * shape_of(big).parameters
    assert shape_of(big, weight_bytes=right) == shape_of(big)
    with pytest.raises(UnsupportedModelError, match="billion parameters"):
        shape_of(big, weight_bytes=2 * right)
    # Quantized weights tell nothing about the number of parameters.
    assert shape_of(big | {"quantization_config": {}}, weight_bytes=right // 4) == shape_of(big)


KEYS = (
    "model_type", "architectures", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim",
    "num_key_value_heads", "vocab_size", "max_position_embeddings", "tie_word_embeddings", "sliding_window", "layer_types",
    "rope_scaling", "text_config", "num_experts", "dtype", "quantization_config", "is_encoder_decoder", "multi_query",
)  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["llama", "gemma2"])
)
anything = st.recursive(
    scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(KEYS), part, max_size=4)
)


@given(st.dictionaries(st.sampled_from(KEYS), anything), st.none() | st.integers(0, 2**45))
def test_whatever_a_configuration_holds_it_is_a_shape_or_a_refusal(
    config: dict[str, Any], weight_bytes: int | None
) -> None:
    for whole in (config, TINY | config):
        try:
            shape = shape_of(whole, weight_bytes=weight_bytes)
        except CheckpointError as refusal:
            assert refusal.hint
        else:
            assert shape.parameters > 0
            assert shape.cache_bytes_per_token > 0
            assert shape.attended(100) >= 0
