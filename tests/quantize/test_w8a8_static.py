"""What w8a8_static promises: ranges from the calibration text, one rounding for shared inputs, a bias that is taken along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx_ir as ir
import pytest

from aiasst.artifacts.model_folder import ModelFolder, record_files, write_manifest
from aiasst.errors import ArtifactError
from aiasst.quantize import quantize
from aiasst.runtime.encoder import EncoderSession
from tests.quantize import graphs


@pytest.fixture(scope="module")
def small(tiny: Callable[[str], ModelFolder], tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return quantize(tiny("bert"), tmp_path_factory.mktemp("static") / "out", recipe="w8a8-static", sequences=2)


def test_every_product_is_one_node_with_its_bias(small: ModelFolder) -> None:
    operators = graphs.operators(small.graph)
    products = [node for node in graphs.nodes(small.graph, "MatMulIntegerToFloat")]
    assert products and all(len(node.input) == 7 and node.input[6] for node in products)
    assert operators.count("QuantizeLinear") <= len(products)
    assert "ReduceMax" not in operators and "SkipLayerNormalization" not in operators
    assert small.manifest.weights["layers.0.o_proj.weight"].format == "w8a8_static"
    assert small.manifest.quantization is not None
    assert small.manifest.quantization.calibration is not None and small.manifest.quantization.calibration.used


def test_it_stays_near_the_original(small: ModelFolder, tiny: Callable[[str], ModelFolder]) -> None:
    ids = [np.random.default_rng(seed).integers(4, 105, 30) for seed in range(4)]
    before, after = (EncoderSession.open(folder).run(ids)[0] for folder in (tiny("bert"), small))
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before)


def test_a_text_does_not_know_its_neighbours(small: ModelFolder) -> None:
    session = EncoderSession.open(small)
    text = np.random.default_rng(1).integers(4, 105, 12)
    company = [text, *(np.full(30, token) for token in range(4, 35))]
    alone, together = session.run([text])[0][0], session.run(company)[0][0, :12]
    np.testing.assert_allclose(alone, together, atol=1e-3)


def test_outliers_behind_a_norm_that_others_read_are_divided_away(
    tiny: Callable[[str], ModelFolder], tmp_path: Path
) -> None:
    """In BERT the residual stream reads the norm too: the norm cannot take the scales, a product of its own does."""
    checkpoint = outlying(tiny("bert"), tmp_path / "outlying")
    for recipe in ("w8a8", "w8a8-static"):
        plain = quantize(checkpoint, tmp_path / f"{recipe}-plain", recipe=recipe, algorithm="mse", sequences=2)
        smooth = quantize(checkpoint, tmp_path / recipe, recipe=recipe, sequences=2)
        ids = [np.random.default_rng(seed).integers(4, 105, 30) for seed in range(4)]
        exact, rough, fine = (EncoderSession.open(folder).run(ids)[0] for folder in (checkpoint, plain, smooth))
        assert any(name.endswith(".smoothed") for name in names_of(smooth))
        assert not any(name.endswith(".smoothed") for name in names_of(plain))
        assert np.linalg.norm(fine - exact) < np.linalg.norm(rough - exact)


def names_of(folder: ModelFolder) -> list[str]:
    return [node.name for node in graphs.nodes(folder.graph, "Mul")]


def outlying(folder: ModelFolder, target: Path) -> ModelFolder:
    """The model with one channel of its first norm 30 times as large."""
    copytree(folder.path, target)
    model = ir.load(target / "model.onnx")
    gamma = model.graph.initializers["embed_norm.weight"]
    assert gamma.const_value is not None
    numbers = gamma.const_value.numpy().copy()
    numbers[3] *= 30
    gamma.const_value = ir.Tensor(numbers, name=gamma.name)
    ir.save(model, target / "model.onnx")
    manifest = folder.manifest.model_copy(update={"files": record_files(target)})
    write_manifest(target, manifest)
    return ModelFolder.open(target)


def test_without_a_text_there_are_no_ranges(tmp_path: Path) -> None:
    source = graphs.product(tmp_path / "m.onnx", graphs.random(64, 32))
    with pytest.raises(ArtifactError, match="ranges of activations cannot be found") as raised:
        quantize(source, tmp_path / "out", recipe="w8a8-static")
    assert "--recipe w8a8" in raised.value.hint
    assert not (tmp_path / "out").exists()
