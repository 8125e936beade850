"""Layer by layer, with the head last, a model says what it says as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import UsageError
from aiasst.evaluate.perplexity import PIECE, DecoderScorer, Scorer, compare
from aiasst.quantize.calibrate.layers import Array, Layer, LayeredModel, cut_layers
from aiasst.quantize.calibrate.reference import LayeredReference
from aiasst.quantize.inventory import take_inventory
from aiasst.quantize.source import open_source
from aiasst.runtime.session import DecoderSession
from tests.quantize import graphs

Tiny = Callable[[str], ModelFolder]
WINDOW = 3 * PIECE
IDS = np.random.default_rng(1).integers(4, 105, 3 * WINDOW + 5)


def _layered(folder: ModelFolder) -> LayeredModel:
    source = open_source(folder)
    return cut_layers(source, take_inventory(source.model.graph, source.table))


def _windows(length: int = WINDOW) -> np.ndarray:
    return IDS[: len(IDS) // length * length].reshape(-1, length)


# A soft cap behind the head, scaled logits, a tied head, windows of attention.
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize("length", [WINDOW, 41])
def test_the_logits_are_those_of_the_model(tiny: Tiny, tmp_path: Path, name: str, length: int) -> None:
    folder = tiny(name)
    reference: Scorer = LayeredReference.prepare(_layered(folder), _windows(length), tmp_path / "work")
    session = DecoderScorer(DecoderSession.open(folder))
    for window in _windows(length):
        for (got, targets), (wanted, others) in zip(reference.score(window), session.score(window), strict=True):
            assert got.shape == wanted.shape
            assert np.abs(got - wanted).max() < 1e-5
            np.testing.assert_array_equal(targets, others)
    assert compare(reference, session, IDS, window=length).mean_kl < 1e-9


def test_other_weights_answer_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    model = _layered(tiny("llama"))
    replaced = {"layers.1.down_proj.weight": graphs.random(576, 172) / 10}

    def others(layer: Layer) -> Mapping[str, Array]:
        return replaced

    plain = LayeredReference.prepare(model, _windows(), tmp_path / "plain")
    other = LayeredReference.prepare(model, _windows(), tmp_path / "other", replaced=others)
    assert compare(plain, other, IDS, window=WINDOW).mean_kl > 1e-3


def test_little_stays_on_disk_and_then_nothing(tiny: Tiny, tmp_path: Path) -> None:
    reference = LayeredReference.prepare(_layered(tiny("llama")), _windows(), tmp_path / "work")
    files = [path for path in (tmp_path / "work").rglob("*.bin")]
    assert len(files) == len(_windows())
    assert sum(path.stat().st_size for path in files) < 1.1 * len(_windows()) * WINDOW // 2 * 172 * 4
    reference.remove()
    assert not list((tmp_path / "work").rglob("*.bin"))


def test_a_window_that_was_not_read_has_no_logits(tiny: Tiny, tmp_path: Path) -> None:
    reference = LayeredReference.prepare(_layered(tiny("llama")), _windows(), tmp_path / "work")
    with pytest.raises(ValueError, match="not prepared"):
        next(reference.score(IDS[1 : WINDOW + 1]))


def test_an_encoder_has_no_logits(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no logits"):
        LayeredReference.prepare(_layered(tiny("bert")), _windows(), tmp_path / "work")
