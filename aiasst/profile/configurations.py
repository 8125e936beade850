"""config.json of a Hugging Face checkpoint → the shape of the decoder, or a refusal. Reads no file and needs no transformers.

What a configuration leaves out is its class' default, so that the families known here have theirs in a table. Another family
with the usual keys is taken for one of the Llama kind, and the size of its weight files then says whether it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiasst.errors import CheckpointError, UnsupportedModelError
from aiasst.profile.shapes import ModelShape

_GENERATES = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MOST_LAYERS = 4096
_AGREE = 0.08
"""How far weights computed and weights counted may lie apart: biases, vision towers and padding of vocabularies are smaller."""
_LEAST_AGREE = 2e6
"""Parameters, below which biases and norms are no small share."""

# What transformers' configuration classes take for a key that is not there; tests compare with them.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"tie_word_embeddings": True, "head_dim": 256},
    "gemma2": {"tie_word_embeddings": True, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "tie_word_embeddings": True, "head_dim": 256, "sliding_window": 4096, "vocab_size": 262208,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072,
    },
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 128, "use_sliding_window": False},
    "mistral": {"num_key_value_heads": 8},
    "gpt2": {"tie_word_embeddings": True},
    "starcoder2": {"tie_word_embeddings": True},
    "smollm3": {"tie_word_embeddings": True, "use_sliding_window": False},
    "cohere": {"tie_word_embeddings": True},
    "cohere2": {"tie_word_embeddings": True, "sliding_window": 4096},
    "opt": {"tie_word_embeddings": True},
    "falcon": {"tie_word_embeddings": True},
    "ernie4_5": {"tie_word_embeddings": True, "head_dim": 128},
}  # fmt: skip
_UNGATED = frozenset(
    {
        "gpt2", "gpt_neox", "gpt_neo", "gptj", "gpt_bigcode", "opt", "phi", "starcoder2", "nemotron", "falcon", "bloom",
        "codegen", "arcee", "apertus",
    }
)  # fmt: skip
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_OTHER_TOWERS = ("vision_config", "audio_config")
# The same number under older names.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads"),
    "max_position_embeddings": ("n_positions", "max_sequence_length", "seq_length"),
    "intermediate_size": ("n_inner", "ffn_dim"),
}
_ORDINARY = "a configuration has it; fetch config.json again"


def shape_of(config: Mapping[str, Any], *, weight_bytes: int | None = None) -> ModelShape:
    """The decoder that `config` (the parsed config.json; of a composite model its text part) describes.

    Args:
        config: a foreign document, so any key may be missing or of a strange kind.
        weight_bytes: of the weight files, where they are known; a shape that disagrees is refused.

    Raises:
        CheckpointError: a number is missing or makes no sense.
        UnsupportedModelError: no decoder, a mixture of experts, or weights that are not of the shape that the keys tell.
    """
    text, model_type = _text_part(config)
    _refuse_others(config, text, model_type)
    shape = _shape(text, model_type)
    parameters = _counted(config, weight_bytes)
    if parameters is not None and abs(shape.parameters - parameters) > max(_LEAST_AGREE, _AGREE * parameters):
        raise UnsupportedModelError(
            f"the weight files hold {parameters / 1e9:.2f} billion parameters, and a decoder of the usual form with the numbers "
            f"of config.json (model type '{model_type}') would have {shape.parameters / 1e9:.2f}",
            "convert it and measure: aiasst convert MODEL, then aiasst profile DIR",
        )
    return shape


def _counted(config: Mapping[str, Any], weight_bytes: int | None) -> float | None:
    """Parameters by the size of the files; None where that does not tell: quantized, or not of the decoder alone."""
    kind = config.get("dtype", config.get("torch_dtype"))
    if weight_bytes is None or "quantization_config" in config or any(key in config for key in _OTHER_TOWERS):
        return None
    return weight_bytes / _BYTES[kind] if isinstance(kind, str) and kind in _BYTES else None


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The keys of the language model and its type; defaults of the family filled in."""
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    if nested is not None and model_type == "gemma3":
        model_type = "gemma3_text"
    known = {key: value for key, value in text.items() if value is not None}
    if "tie_word_embeddings" in config and "tie_word_embeddings" not in known:
        known["tie_word_embeddings"] = config["tie_word_embeddings"]
    return {**_DEFAULTS.get(model_type, {}), **known}, model_type


def _refuse_others(config: Mapping[str, Any], text: Mapping[str, Any], model_type: str) -> None:
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if config.get("is_encoder_decoder") or (names and not any(name.endswith(_GENERATES) for name in names)):
        raise UnsupportedModelError(
            f"{names[0] if names else model_type} is no decoder, and advice is about generating text",
            "convert it and measure: aiasst convert MODEL, then aiasst eval DIR",
        )
    experts = next((text[key] for key in _EXPERTS if isinstance(text.get(key), int) and text[key] > 1), None)
    if experts is not None:
        raise UnsupportedModelError(
            f"a mixture of {experts} experts (model type '{model_type}') is not predicted here: a token reads only some of them",
            "choose a dense model: aiasst advise lists some",
        )


def _shape(text: Mapping[str, Any], model_type: str) -> ModelShape:
    layers, hidden = _number(text, "num_hidden_layers"), _number(text, "hidden_size")
    if layers > _MOST_LAYERS:
        raise CheckpointError(f"config.json speaks of {layers} layers, and no model has so many", _ORDINARY)
    heads = _number(text, "num_attention_heads")
    context = _number(text, "max_position_embeddings")
    head_dim = _optional(text, "head_dim") or hidden // heads
    if head_dim < 1:
        raise CheckpointError(f"config.json has {heads} attention heads for a hidden size of {hidden}", _ORDINARY)
    if text.get("multi_query") is True:
        kv_heads = 1
    else:
        kv_heads = _optional(text, "num_key_value_heads") or _optional(text, "num_kv_heads") or heads
    gated = model_type not in _UNGATED
    return ModelShape(
        model_type=model_type,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_optional(text, "intermediate_size") or 4 * hidden,
        vocab_size=_number(text, "vocab_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context_length=_context(text, context),
        tied_embedding=text.get("tie_word_embeddings") is True,
        gated=gated,
        windows=_windows(text, layers, context),
    )


def _number(text: Mapping[str, Any], name: str) -> int:
    found = _optional(text, name)
    if found is None:
        raise CheckpointError(f"config.json has no usable {name}", _ORDINARY)
    return found


def _optional(text: Mapping[str, Any], name: str) -> int | None:
    for key in (name, *_NAMES.get(name, ())):
        value = text.get(key)
        # A bool is an int in Python, and sizes beyond any model are not computed with.
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    return None


def _context(text: Mapping[str, Any], context: int) -> int:
    """Positions that a converted model answers: with LongRoPE those of the original length (see convert.architecture)."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = text.get(key)
        if isinstance(rope, Mapping) and "longrope" in (rope.get("rope_type"), rope.get("type")):
            original = _optional(rope, "original_max_position_embeddings") or _optional(
                text, "original_max_position_embeddings"
            )
            return min(context, original) if original else context
    return context


def _windows(text: Mapping[str, Any], layers: int, context: int) -> tuple[int | None, ...]:
    """As convert.architecture reads them; the pattern of Gemma, which newer classes write as layer_types, is taken as it was."""
    window = _optional(text, "sliding_window")
    if window is None or window >= context or text.get("use_sliding_window") is False:
        return ()
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    pattern = _optional(text, "sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}.get(
        str(text.get("model_type", ""))
    )
    if pattern:
        return tuple(None if (layer + 1) % pattern == 0 else window for layer in range(layers))
    return (window,) * layers
