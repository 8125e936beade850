"""One conformance test over every format: its size, its inverse, and that ONNX Runtime computes with exactly these weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts.recipe import BLOCK_SIZES, INT2_BLOCK_SIZES, Recipe, WeightFormat
from aiasst.quantize import formats, quantize
from aiasst.quantize.algorithms import rtn
from aiasst.quantize.calibrate.contents import round_weight
from aiasst.quantize.grid import Quantized
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.rewrite import pack_matrix
from aiasst.runtime.session import GraphSession
from tests.quantize import graphs

SPECS = [WeightFormat(format=name) for name in ("fp32", "fp16", "w8a8", "w8a8_static")] + [
    WeightFormat(format=name, block_size=block, zero_point=zero)
    for name, blocks in (("int2", INT2_BLOCK_SIZES), ("int4", BLOCK_SIZES), ("int8", BLOCK_SIZES))
    for block in blocks
    for zero in (False, True)
]
SHAPES = [(172, 105), (576, 33), (896, 64), (256, 105)]


@pytest.fixture(autouse=True)
def padding_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan would shrink blocks that pad much; here the packing of exactly such blocks is tested."""
    monkeypatch.setattr("aiasst.artifacts.recipe._MOST_PADDING", 10.0)


def _recipe(spec: WeightFormat) -> Recipe:
    return Recipe(name="test", description="", algorithm="rtn", default=spec)


def _matrix(n: int, k: int, *, rows_first: bool = False) -> Matrix:
    return Matrix("layers.0.o_proj.weight", "o", 0, n, k, rows_first)


def test_every_format_a_recipe_may_name_exists() -> None:
    assert {spec.format for spec in SPECS} == set(formats.names())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@given(n=st.integers(1, 20), k=st.integers(1, 300), rows_first=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_packed_weights_dequantize_to_what_the_algorithm_returned(
    spec: WeightFormat, n: int, k: int, rows_first: bool, seed: int
) -> None:
    format_, matrix = formats.load(spec.format), _matrix(n, k, rows_first=rows_first)
    weight = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    grid = format_.grid(spec)
    content: Quantized | np.ndarray = weight if grid is None else rtn.quantize(weight, grid)
    parts = format_.pack(spec, matrix, content)
    expected = content.dequantize() if isinstance(content, Quantized) else weight
    tolerance = 1e-3 if spec.format == "fp16" else 0
    np.testing.assert_allclose(format_.unpack(spec, matrix, parts), expected, rtol=tolerance, atol=tolerance)
    assert sum(part.array.nbytes for part in parts) == format_.nbytes(spec, matrix)


# Of a graph without texts there are no ranges: test_w8a8_static.py.
@pytest.mark.parametrize("spec", [s for s in SPECS if s.format != "w8a8_static"], ids=lambda s: s.label)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_onnxruntime_computes_with_the_packed_weights(spec: WeightFormat, k: int, n: int, tmp_path: Path) -> None:
    weight = graphs.random(k, n)
    folder = quantize(graphs.product(tmp_path / "m.onnx", weight), tmp_path / "out", recipe=_recipe(spec))
    x = graphs.random(2, 5, k, seed=1)
    got = GraphSession.open(folder.graph).run({"x": x})[0]
    matrix = _matrix(n, k)
    parts = pack_matrix(matrix, round_weight(weight.T, spec, rtn), spec)
    expected = x @ formats.load(spec.format).unpack(spec, matrix, parts).T
    # What is left is the rounding of activations to 8 bits.
    tolerance = 0.014 if spec.format not in ("fp32", "fp16") else 1e-5
    assert got.shape == (2, 5, n)
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.format.startswith("w8a8")], ids=lambda s: s.label)
@pytest.mark.parametrize("width", [172, 256])
def test_a_tied_embedding_and_head_read_the_same_bytes(spec: WeightFormat, width: int, tmp_path: Path) -> None:
    embedding = graphs.random(105, width)
    folder = quantize(graphs.tied(tmp_path / "m.onnx", embedding), tmp_path / "out", recipe=_recipe(spec))
    ids = np.array([[0, 104, 3], [7, 1, 50]])
    logits, rows = GraphSession.open(folder.graph).run({"ids": ids}, ["logits", "rows"])
    matrix = Matrix("embed_tokens.weight", "embed", None, 105, width, True, looks_up=True)
    weights = formats.load(spec.format).unpack(
        spec, matrix, pack_matrix(matrix, round_weight(embedding, spec, rtn), spec)
    )
    np.testing.assert_allclose(rows, weights[ids], atol=1e-6)
    assert np.linalg.norm(logits - rows @ weights.T) <= 0.014 * np.linalg.norm(rows @ weights.T)
    packed = formats.load(spec.format).nbytes(spec, matrix)
    assert packed <= folder.manifest.files["model.onnx.data"].bytes < packed + 256
    assert folder.manifest.weights["embed_tokens.weight"].bytes == packed


@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
def test_integer_kernels_are_asked_for_on_the_fast_path(name: str, tmp_path: Path) -> None:
    spec = WeightFormat(format=name, block_size=128, zero_point=True)
    path = quantize(graphs.product(tmp_path / "m.onnx", graphs.random(256, 64)), tmp_path / "o", recipe=_recipe(spec))
    (node,) = graphs.nodes(path.graph, "MatMulNBits")
    assert graphs.attribute(node, "accuracy_level") == 4
    assert graphs.attribute(node, "bits") == int(name[3:])
    assert list(node.input) == ["x"] + [f"layers.0.o_proj{suffix}" for suffix in (".q", ".scale", ".zp")]
    assert node.name == "layers.0.o_proj"
