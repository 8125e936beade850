"""Conformance of encoders: an architecture with a head computes what the original computes, alone and padded, and in w8a8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.quantize import quantize
from aiasst.runtime.encoder import EncoderSession
from tests import checkpoints

HEADS = {
    "feature-extraction": ("AutoModel", {}),
    "text-classification": ("AutoModelForSequenceClassification", {"num_labels": 3}),
    "cross-encoder": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "token-classification": ("AutoModelForTokenClassification", {"num_labels": 5}),
    "fill-mask": ("AutoModelForMaskedLM", {}),
}
WIDTHS = {
    "feature-extraction": 64,
    "text-classification": 3,
    "cross-encoder": 1,
    "token-classification": 5,
    "fill-mask": 105,
}
CASES = [("roberta", "feature-extraction"), ("distilbert", "feature-extraction"), ("deberta_v2", "feature-extraction")]


@pytest.fixture(autouse=True)
def short_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy cards of a short text: what they say is tested elsewhere."""
    monkeypatch.setattr("aiasst.evaluate.encoders.DEFAULT_TOKENS", 512)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModelFolder]:
    """The folder of an architecture with a head, by whichever exporter carries it."""
    made: dict[tuple[str, str], ModelFolder] = {}

    def get(name: str, head: str) -> ModelFolder:
        if (name, head) not in made:
            folder: Path = tmp_path_factory.mktemp("encoders")
            auto_class, own = HEADS[head]
            source = checkpoints.build(name, folder / "checkpoint", auto_class=auto_class, **own)
            made[name, head] = convert(source, folder / "model")
        return made[name, head]

    return get


def rows(lengths: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(4, checkpoints.VOCABULARY, length) for length in lengths]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_computes_what_the_original_computes(
    name: str, head: str, encoder: Callable[[str, str], ModelFolder], tmp_path: Path
) -> None:
    folder = encoder(name, head)
    proof = folder.manifest.verification
    assert proof is not None
    assert proof.max_abs_diff <= proof.tolerance
    assert proof.max_abs_diff < 1e-4
    assert proof.top1_agreement == 1.0
    assert folder.manifest.task == ("text-classification" if head == "cross-encoder" else head)
    assert folder.manifest.encoding is not None

    ids = rows((9, 40, 3, 17))
    session = EncoderSession.open(folder)
    assert session.width == WIDTHS[head]
    together, _ = session.run(ids)
    for index, row in enumerate(ids):
        alone = session.run([row])[0][0]
        own = together[index, : len(row)] if together.ndim == 3 else together[index]
        np.testing.assert_allclose(own, alone, atol=2e-5)

    small = EncoderSession.open(quantize(folder, tmp_path / "w8a8", algorithm="rtn"))
    rounded, mask = small.run(ids)
    kept = mask > 0 if together.ndim == 3 else slice(None)
    spread = np.linalg.norm(together[kept] - together[kept].mean())
    assert np.linalg.norm(rounded[kept] - together[kept]) < 0.15 * spread
