"""llama.cpp through its Python package: a GGUF file in fp32, quantized to the variant.

Variants: any of its types (Q4_K_M, …), or TYPE-imatrix: with an importance matrix of the calibration sequences, which is the
mean square of each input channel. llama.cpp's own tool for it is no part of the package; torch computes the same figures.

The file is written here, because the package brings no converter: names, rotary order of the rows of q and k, metadata of the
Llama architecture; no vocabulary, since only ids are fed.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from common import Job, Writer, main
from safetensors.numpy import load_file

PLAIN, SMALL = "f32.gguf", "small.gguf"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k with the two halves of each head interleaved, the order in which llama.cpp turns them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_plain(checkpoint: Path, path: Path) -> None:
    """The checkpoint as an fp32 GGUF file."""
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, value in load_file(file).items():
            array = value.astype(np.float32)
            if name in OUTSIDE:
                writer.add_tensor(OUTSIDE[name], array)
                continue
            layer, inner = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if inner.endswith(("q_proj", "k_proj")):
                array = np.ascontiguousarray(interleaved(array, heads if inner.endswith("q_proj") else kv_heads))
            writer.add_tensor(f"blk.{layer}.{NAMES[inner]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance_matrix(checkpoint: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Name of a tensor in the GGUF file → mean square of each of its input channels, float32 [K]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].flatten(0, -2).square().mean(0)
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return add

    for index, layer in enumerate(model.model.layers):
        for inner, short in NAMES.items():
            if inner.endswith("_proj"):
                layer.get_submodule(inner).register_forward_pre_hook(watch(f"blk.{index}.{short}.weight"))
    with torch.inference_mode():
        for sequence in ids:
            model(torch.from_numpy(sequence[None]))
    return {name: (total / len(ids)).numpy() for name, total in sums.items()}


def as_array(importance: dict[str, np.ndarray]) -> ctypes.Array[Any]:
    """The same as llama.cpp wants it: an array of structures that ends with an empty one."""
    array = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(array, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def quantize(job: Job) -> None:
    """Write the quantized file to the output folder."""
    plain = job.output / PLAIN
    write_plain(job.checkpoint, plain)
    parameters = llama_cpp.llama_model_quantize_default_params()
    kind, _, imatrix = job.variant.partition("-")
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if imatrix:
        importance = importance_matrix(job.checkpoint, job.calibration)
        parameters.imatrix = as_array(importance)
    code = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(job.output / SMALL).encode(), ctypes.byref(parameters)
    )
    if code != 0:
        raise SystemExit(f"llama_model_quantize returned {code}")


def logits(folder: Path, ids: np.ndarray, writer: Writer, int8_head: bool) -> int:
    """Logits by llama.cpp, one window at a time; the bytes of the tensors."""
    path = folder / SMALL
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    window = ids.shape[1]
    settings.n_ctx = settings.n_batch = settings.n_ubatch = window
    settings.n_threads = settings.n_threads_batch = len(
        os.sched_getaffinity(0)
    )  # its default of 4 waits on itself on 2 cores
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit(f"llama.cpp cannot open {path}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(window, 0, 1)
    for index, tokens in enumerate(ids):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = window
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = int(token), place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        rows = llama_cpp.llama_get_logits(context)
        writer.put(index, np.ctypeslib.as_array(rows, (window, vocabulary)).copy())
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


if __name__ == "__main__":
    main("llama-cpp-python", quantize, logits)
