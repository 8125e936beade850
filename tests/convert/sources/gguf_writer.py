"""Writes a transformers model as a GGUF file, the way llama.cpp's converter lays it out: the other direction of gguf_file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

TOKENS = (
    ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]
)
"""A sentencepiece vocabulary: control tokens, bytes, pieces."""

CHAT_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"

_NORMS_PLUS_ONE = ("gemma2", "gemma3")


def write(
    path: Path,
    model: Any,
    architecture: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    extra: dict[str, np.ndarray] | None = None,
    metadata: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    packed: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
) -> None:
    """Write `model` with its matrices in the format `kind`.

    `extra` tensors and `metadata` are added, the tensors `without` left out, `packed` ones written as they are.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _add_config(writer, model.config, architecture)
    add_vocabulary(writer)
    for key, value in (metadata or {}).items():
        (
            writer.add_string
            if isinstance(value, str)
            else writer.add_float32
            if isinstance(value, float)
            else writer.add_uint32
        )(key, value)
    for name, values in {**_tensors(model, architecture), **(extra or {})}.items():
        if name in (packed or {}):
            writer.add_tensor(name, packed[name][0], raw_dtype=packed[name][1])
        elif name not in without:
            _add_tensor(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if getattr(config, "sliding_window", None) and architecture in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)


def add_vocabulary(writer: gguf.GGUFWriter, *, bos: bool = True) -> None:
    """The tokenizer of the file, with a chat template."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(TOKENS) - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(TOKENS) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(bos)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """GGUF name → values: the permutations and offsets of llama.cpp's converter (convert_hf_to_gguf.py)."""
    config = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {}
    for hf_name, tensor in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, suffix = hf_name.rsplit(".", 1)
        name, values = f"{names.get_name(stem)}.{suffix}", tensor.float().numpy()
        if architecture == "llama" and ".attn_q." in name:
            values = _interleave(values, config.num_attention_heads)
        if architecture == "llama" and ".attn_k." in name:
            values = _interleave(values, config.num_key_value_heads)
        if architecture in _NORMS_PLUS_ONE and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "gpt2" and values.ndim == 2 and name.startswith("blk."):
            values = values.T
        tensors[name] = np.ascontiguousarray(values)
    return tensors


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows (first halves, then second halves of a head) → pairs side by side, as ggml's rotary kernel wants them."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    matrix = values.ndim == 2 and values.shape[-1] % 32 == 0
    if not matrix or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values.astype(np.float32))
        return
    packed = gguf.quantize(values.astype(np.float32), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)
