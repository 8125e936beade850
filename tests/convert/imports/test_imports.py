"""Checkpoints that others quantized, made here, converted: the integers in the ONNX file are the checkpoint's, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.pipeline import convert
from aiasst.runtime.session import GraphSession
from tests import checkpoints
from tests.convert.imports import packers
from tests.convert.imports.packers import Made, Module, Style

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
SIZES = {"hidden_size": 64, "intermediate_size": 192}


def gptq(bits: int = 4, *, v1: bool = True, **extra: Any) -> dict[str, Any]:
    form = {"checkpoint_format": "gptq" if v1 else "gptq_v2"}
    return {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": True, "desc_act": False, **form, **extra}


def awq(**extra: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", **extra}


def compressed(form: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, **weights}
    group = {"targets": ["Linear"], "weights": args, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "llama", **overrides: Any) -> Path:
        folder = tmp_path / "checkpoint"
        return checkpoints.build(name, folder, dtype="float16", **{**SIZES, **overrides})

    return make


def initializers(folder: ModelFolder) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in ir.load(folder.graph).graph.initializers.items()}


def products(folder: ModelFolder) -> dict[str, ir.Node]:
    return {node.name or "": node for node in ir.load(folder.graph).graph if node.op_type == "MatMulNBits"}


def unpacked(raw: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., bytes] → [..., values], the first in the lowest bits."""
    return np.stack([(raw >> place) & (2**bits - 1) for place in range(0, 8, bits)], axis=-1).reshape(
        *raw.shape[:-1], -1
    )


def packed_weights(folder: ModelFolder) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]]:
    """Product → values [N, K], scales [N, blocks], zero points [N, blocks] and the node's attributes."""
    tensors = initializers(folder)
    found = {}
    for name, node in products(folder).items():
        told = {key: node.attributes[key].as_int() for key in ("bits", "block_size", "K", "N", "accuracy_level")}
        bits, k, n = told["bits"], told["K"], told["N"]
        values = unpacked(tensors[f"{name}.q"].reshape(n, -1), bits)[:, :k]
        scales = tensors[f"{name}.scale"]
        zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
        if f"{name}.zp" in tensors:
            zeros = unpacked(tensors[f"{name}.zp"], bits)[:, : scales.shape[1]]
        assert told["accuracy_level"] == 4
        found[name] = values, scales, zeros, told
    return found


def parts_of(made: Made, product: str) -> list[Module]:
    """The modules of the checkpoint that a product of the graph is made of."""
    layer, _, last = product.removeprefix("layers.").partition(".")
    ends = [f"layers.{layer}.{kind}.{part}" for part in FUSED.get(last, (last,)) for kind in ("self_attn", "mlp")]
    return [made.modules[f"model.{end}"] for end in ends if f"model.{end}" in made.modules]


def assert_same_integers(folder: ModelFolder, made: Made) -> None:
    """Values, scales and zero points of every product are those of the checkpoint, rows one after the other."""
    weights = packed_weights(folder)
    assert sum(len(parts_of(made, name)) for name in weights) == len(made.modules)
    for name, (values, scales, zeros, told) in weights.items():
        modules = parts_of(made, name)
        assert told["bits"] == max(4 if module.bits == 3 else module.bits for module in modules)
        assert np.array_equal(values, np.concatenate([module.values for module in modules]))
        first = np.arange(scales.shape[1]) * told["block_size"]
        assert np.array_equal(
            scales, np.concatenate([module.scales[:, first // module.group_size] for module in modules])
        )
        assert np.array_equal(
            zeros, np.concatenate([module.zeros[:, first // module.group_size] for module in modules])
        )


def dequantized(folder: ModelFolder) -> dict[str, np.ndarray]:
    """Product → float32 [N, K] that its integers stand for, inputs in the product's order."""
    found = {}
    for name, (values, scales, zeros, told) in packed_weights(folder).items():
        block = np.arange(told["K"]) // told["block_size"]
        found[name] = (values - zeros[:, block].astype(np.float64)) * scales[:, block]
    return found


def torch_logits(made: Made, ids: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """What the model answers in torch, float32, its linear weights dequantized."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    config = transformers.AutoConfig.from_pretrained(made.folder)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    tensors = {name: torch.from_numpy(array) for name, array in load_file(made.folder / "model.safetensors").items()}
    for name, module in made.modules.items():
        weight = module.weight.T if transposed else module.weight
        tensors[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
    missing, _ = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.inference_mode():
        logits: np.ndarray = model.eval()(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy()
    return logits


def assert_same_answers(folder: ModelFolder, made: Made, **options: Any) -> None:
    """Logits near those of torch: the same weights, activations rounded to int8."""
    shape = folder.manifest.shape
    assert shape is not None
    ids = np.random.default_rng(3).integers(4, 100, (1, 24))
    expected = torch_logits(made, ids, **options)
    session = GraphSession.open(folder.graph)
    feeds: dict[str, Any] = {
        name: np.zeros((1, shape.kv_heads, 0, shape.head_dim), np.float32)
        for pair in signature.cache_pairs(shape.layers)
        for name in pair[:1]
    }
    feeds |= {
        signature.INPUT_IDS: ids,
        signature.ATTENTION_MASK: np.ones_like(ids),
        signature.ALL_LOGITS: np.array(True),
    }
    logits = session.run(feeds, [signature.LOGITS])[0][0]
    error = np.sqrt(np.mean((logits - expected) ** 2) / np.mean((expected - expected.mean()) ** 2))
    assert error < 0.05


def assert_formats(folder: ModelFolder, **formats: str) -> None:
    rows = folder.manifest.weights
    assert {role: {row.format for row in rows.values() if row.role == role} for role in formats} == {
        role: {label} for role, label in formats.items()
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
def test_gptq_of_several_architectures(name: str, build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build(name), gptq(), partial(packers.gptq_tensors, v1=True))
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)
    assert_formats(folder, qkv="int4-b32", down="int4-b32", embed="fp16", lm_head="fp16")
    facts = folder.manifest.quantization
    assert facts is not None
    assert (facts.recipe, facts.algorithm) == ("imported", "gptq (imported)")
    assert folder.manifest.exporter == "mobius"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("v1", [True, False])
def test_gptq_of_all_bits(bits: int, symmetric: bool, v1: bool, build: Callable[..., Path], tmp_path: Path) -> None:
    style = Style(bits=bits, symmetric=symmetric)
    made = packers.pack(build(), gptq(bits, v1=v1, sym=symmetric), partial(packers.gptq_tensors, v1=v1), style)
    folder = convert(made.folder, tmp_path / "out")
    if bits == 3 and symmetric:
        # Three bits lie in the middle of four.
        for module in made.modules.values():
            module.values, module.zeros = module.values + np.uint8(4), module.zeros + np.uint8(4)
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)
    container = {2: "int2-b32", 3: "int4-b32", 4: "int4-b32", 8: "int8-b32"}[bits]
    assert_formats(folder, qkv=container if symmetric else f"{container}-zp")
