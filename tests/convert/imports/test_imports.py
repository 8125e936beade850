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


@pytest.mark.parametrize(("group_size", "block"), [(64, 64), (128, 128), (256, 256), (512, 256), (-1, 256), (96, 32)])
def test_groups_become_blocks(group_size: int, block: int, build: Callable[..., Path], tmp_path: Path) -> None:
    style = Style(group_size=group_size, symmetric=False)
    wide = build(hidden_size=512, intermediate_size=1024, num_attention_heads=8, head_dim=64)
    tensors_of = partial(packers.gptq_tensors, v1=True, g_idx=False)
    made = packers.pack(wide, gptq(group_size=group_size, sym=False), tensors_of, style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)
    assert_formats(folder, qkv=f"int4-b{block}-zp", down=f"int4-b{block}-zp")


def test_inputs_that_were_sorted_before_grouping(build: Callable[..., Path], tmp_path: Path) -> None:
    style = Style(symmetric=False, act_order=True)
    made = packers.pack(build(), gptq(desc_act=True, sym=False), partial(packers.gptq_tensors, v1=True), style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_answers(folder, made)
    tensors = initializers(folder)
    found = dequantized(folder)
    assert sum(node.op_type == "Gather" and "reorder" in (node.name or "") for node in ir.load(folder.graph).graph) == 8
    for name, weight in found.items():
        order = tensors[f"{name}.weight.order"]
        wanted = np.concatenate([module.weight for module in parts_of(made, name)])
        assert np.array_equal(weight.astype(np.float32), wanted[:, order])
        assert np.array_equal(np.sort(order), np.arange(weight.shape[1]))


def test_static_groups_need_no_order(build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build(), gptq(desc_act=True, static_groups=True), partial(packers.gptq_tensors, v1=True))
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert not any("order" in name for name in initializers(folder))


def test_modules_with_other_bits_and_groups(build: Callable[..., Path], tmp_path: Path) -> None:
    def style(module: str) -> Style | None:
        if module.endswith("down_proj"):
            return Style(bits=8, group_size=64)
        return None if module.endswith("layers.1.self_attn.o_proj") else Style()

    dynamic = {r"+:.*\.down_proj": {"bits": 8, "group_size": 64}, r"-:.*layers\.1\..*o_proj": {}}
    made = packers.pack(build(), gptq(dynamic=dynamic), partial(packers.gptq_tensors, v1=True), style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)
    assert_formats(folder, qkv="int4-b32", down="int8-b64")
    assert folder.manifest.weights["layers.1.o_proj.weight"].format == "fp16"


def test_a_fused_product_of_unlike_parts_takes_the_finer_grid(build: Callable[..., Path], tmp_path: Path) -> None:
    def style(module: str) -> Style:
        if module.endswith("v_proj"):
            return Style(bits=8, group_size=-1)
        return Style(group_size=64 if module.endswith("up_proj") else 32, symmetric=not module.endswith("gate_proj"))

    dynamic = {r".*v_proj": {"bits": 8, "group_size": -1}, r".*up_proj": {"group_size": 64}}
    told = gptq(dynamic=dynamic, sym=False, v1=False)
    made = packers.pack(build(), told, partial(packers.gptq_tensors, v1=False), style)
    folder = convert(made.folder, tmp_path / "out")
    assert_formats(folder, qkv="int8-b32", gate_up="int4-b32-zp", o="int4-b32")
    assert_same_answers(folder, made)
    for name, weight in dequantized(folder).items():
        assert np.array_equal(weight.astype(np.float32), np.concatenate([m.weight for m in parts_of(made, name)]))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_awq(name: str, build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build(name), awq(modules_to_not_convert=None), packers.awq_tensors, Style(symmetric=False))
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)
    assert_formats(folder, qkv="int4-b32-zp")
    assert folder.manifest.quantization is not None
    assert folder.manifest.quantization.algorithm == "awq (imported)"


@pytest.mark.parametrize(
    ("packing", "symmetric"),
    [("auto_round:auto_gptq", True), ("auto_round:auto_gptq", False), ("auto_round:gptqmodel", False),
     ("auto_round", False), ("auto_round:auto_awq", False), (None, True)],
)  # fmt: skip
def test_auto_round(packing: str | None, symmetric: bool, build: Callable[..., Path], tmp_path: Path) -> None:
    told = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": symmetric, "data_type": "int"}
    told |= {"packing_format": packing} if packing else {"backend": "auto"}
    tensors_of: Any = partial(packers.gptq_tensors, v1=packing != "auto_round", g_idx=False)
    if packing == "auto_round:auto_awq":
        tensors_of = packers.awq_tensors
    made = packers.pack(build("qwen2"), told, tensors_of, Style(symmetric=symmetric))
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)
    assert folder.manifest.quantization is not None
    assert folder.manifest.quantization.algorithm == "auto-round (imported)"


def test_auto_round_with_layers_of_their_own(build: Callable[..., Path], tmp_path: Path) -> None:
    eight = "model.layers.0.mlp.down_proj"
    told = {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "packing_format": "auto_round:auto_gptq",
    }
    told["extra_config"] = {eight: {"bits": 8}, "model.layers.1.mlp.down_proj": {"bits": 16}}
    made = packers.pack(
        build(), told, partial(packers.gptq_tensors, v1=True),
        lambda module: None if module.endswith("1.mlp.down_proj") else Style(bits=8 if module == eight else 4),
    )  # fmt: skip
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
def test_compressed_tensors(
    bits: int, symmetric: bool, group_size: int, build: Callable[..., Path], tmp_path: Path
) -> None:
    strategy = (
        {"strategy": "group", "group_size": 32} if group_size == 32 else {"strategy": "channel", "group_size": None}
    )
    told = compressed(num_bits=bits, symmetric=symmetric, **strategy)
    style = Style(bits=bits, symmetric=symmetric, group_size=group_size)
    made = packers.pack(build("qwen3"), told, partial(packers.compressed_tensors, symmetric=symmetric), style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)


def test_compressed_tensors_of_int8_with_rounded_activations(build: Callable[..., Path], tmp_path: Path) -> None:
    told = compressed("int-quantized", num_bits=8, strategy="channel", group_size=None)
    told["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "dynamic": True, "strategy": "token"}
    style = Style(bits=8, group_size=-1, scale_dtype=np.float32)
    made = packers.pack(build("llama"), told, packers.int8_tensors, style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)
    assert_same_answers(folder, made)


def test_compressed_tensors_with_groups_of_modules_and_sorted_inputs(
    build: Callable[..., Path], tmp_path: Path
) -> None:
    told = compressed(actorder="group")
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None}
    told["config_groups"]["group_1"] = {"targets": [r"re:.*down_proj$"], "weights": eight}

    def style(module: str) -> Style:
        return Style(bits=8, group_size=-1) if module.endswith("down_proj") else Style(act_order=True)

    def tensors_of(name: str, module: Module) -> dict[str, Any]:
        tensors = packers.compressed_tensors(name, module, symmetric=True)
        return tensors if module.bits == 8 else tensors | {f"{name}.weight_g_idx": module.groups.astype(np.int32)}

    made = packers.pack(build(), told, tensors_of, style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_answers(folder, made)
    assert_formats(folder, qkv="int4-b32", gate_up="int4-b32", down="int8-b64")


@pytest.mark.parametrize("dtype", [np.float32, "bfloat16"])
def test_scales_of_other_types_are_kept_exactly(dtype: Any, build: Callable[..., Path], tmp_path: Path) -> None:
    """Products with float32 scales are rounded; the integers come back all the same."""
    if dtype == np.float32:
        style, tensors_of = Style(scale_dtype=np.float32), partial(packers.gptq_tensors, v1=True, scales=np.float32)
        made = packers.pack(build(), gptq(), tensors_of, style)
    else:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        style, tensors_of = (
            Style(scale_dtype=ml_dtypes.bfloat16),
            partial(packers.gptq_tensors, v1=True, scales=ml_dtypes.bfloat16),
        )
        made = packers.pack(build(), gptq(), tensors_of, style)
    folder = convert(made.folder, tmp_path / "out")
    assert_same_integers(folder, made)


def test_a_quantized_head_and_transposed_modules(build: Callable[..., Path], tmp_path: Path) -> None:
    head = packers.re.compile(packers.LINEAR.pattern + r"|lm_head$")
    made = packers.pack(build(vocab_size=128), gptq(lm_head=True), partial(packers.gptq_tensors, v1=True), matches=head)
    folder = convert(made.folder, tmp_path / "out")
    assert folder.manifest.weights["lm_head.weight"].format == "int4-b32"
    assert np.array_equal(packed_weights(folder)["lm_head"][0], made.modules["lm_head"].values)
    assert_same_answers(folder, made)


def test_gpt2_keeps_its_weights_the_other_way_round(tmp_path: Path) -> None:
    checkpoint = checkpoints.build("gpt2", tmp_path / "checkpoint", dtype="float16", n_head=4)
    tensors_of = partial(packers.gptq_tensors, v1=True)
    made = packers.pack(checkpoint, gptq(), tensors_of, transposed=True)
    folder = convert(made.folder, tmp_path / "out")
    assert_formats(folder, qkv="int4-b32", o="int4-b32", up="int4-b32", down="int4-b32")
    assert_same_answers(folder, made, transposed=True)


def test_biases_of_zeros_that_the_model_lacks_are_dropped(build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build(), gptq(), partial(packers.gptq_tensors, v1=True))

    def add_biases(tensors: dict[str, np.ndarray]) -> None:
        for name, module in made.modules.items():
            tensors[f"{name}.bias"] = np.zeros(len(module.values), np.float16)

    packers.rewrite(made.folder, add_biases)
    assert_same_integers(convert(made.folder, tmp_path / "out"), made)


def test_heads_that_were_widened_stay_float(build: Callable[..., Path], tmp_path: Path) -> None:
    """Head size 8 becomes 16: rows of Q, K and V are zeros then, which lie on any grid, and inputs of the output projection."""
    made = packers.pack(build("llama_tied"), gptq(), partial(packers.gptq_tensors, v1=True, g_idx=False))
    folder = convert(made.folder, tmp_path / "out")
    assert_formats(folder, qkv="int4-b32", o="fp32", down="int4-b32")
    assert_same_answers(folder, made)


def test_equal_rows_keep_their_own_integers(build: Callable[..., Path], tmp_path: Path) -> None:
    """Dead outputs are rows of zeros, on grids with other zero points in each module."""

    def with_dead_rows(name: str, module: Module) -> dict[str, Any]:
        for row in (0, 5, len(module.values) - 1):
            module.zeros[row] = len(made_so_far) % 15 + 1
            module.values[row] = module.zeros[row][module.groups]
        made_so_far.append(name)
        return packers.gptq_tensors(name, module, v1=False)

    made_so_far: list[str] = []
    made = packers.pack(build(), gptq(v1=False, sym=False), with_dead_rows, Style(symmetric=False))
    assert_same_integers(convert(made.folder, tmp_path / "out"), made)


def test_float_weights_instead_of_integers(build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build(), gptq(), partial(packers.gptq_tensors, v1=True))
    folder = convert(made.folder, tmp_path / "out", dequantize=True)
    assert folder.manifest.quantization is None
    assert folder.manifest.verification is not None
    wanted = np.concatenate([module.weight for module in parts_of(made, "layers.0.qkv_proj")])
    assert np.array_equal(initializers(folder)["layers.0.qkv_proj.weight"].T, wanted)


def test_the_public_function_keeps_integers(build: Callable[..., Path], tmp_path: Path) -> None:
    import aiasst

    made = packers.pack(build(), gptq(), partial(packers.gptq_tensors, v1=True))
    assert_same_integers(aiasst.convert(made.folder, tmp_path / "out"), made)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_rest_may_be_rounded(name: str, build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build(name), gptq(), partial(packers.gptq_tensors, v1=True))
    folder = convert(made.folder, tmp_path / "out", rest="int8")
    assert_formats(folder, qkv="int4-b32", embed="int8-b64", lm_head="int8-b64")
    assert_same_answers(folder, made)


def test_products_that_are_fused_in_the_checkpoint(build: Callable[..., Path], tmp_path: Path) -> None:
    fused = packers.re.compile(r".*\.(qkv_proj|o_proj|gate_up_proj|down_proj)$")
    made = packers.pack(build("phi3"), gptq(), partial(packers.gptq_tensors, v1=True), matches=fused)
    folder = convert(made.folder, tmp_path / "out")
    assert_formats(folder, qkv="int4-b32", o="int4-b32", gate_up="int4-b32", down="int4-b32")
    assert_same_answers(folder, made)


def test_another_exporter_makes_no_difference(build: Callable[..., Path], tmp_path: Path) -> None:
    made = packers.pack(build("qwen3", num_hidden_layers=1), awq(), packers.awq_tensors, Style(symmetric=False))
    folder = convert(made.folder, tmp_path / "out", exporter="transformers")
    assert_same_integers(folder, made)
    assert folder.manifest.exporter == "transformers"
