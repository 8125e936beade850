"""What stands behind pooling: the formulas of sentence-transformers' modules, against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aiasst.artifacts.encoding import Encoding, Projection
from aiasst.errors import ArtifactError
from aiasst.runtime.projection import ACTIVATIONS, Linear, TextVectors

TORCH = {
    "identity": torch.nn.Identity, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid, "relu": torch.nn.ReLU,
    "gelu": torch.nn.GELU, "silu": torch.nn.SiLU,
}  # fmt: skip
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def stored(folder: Path, declared: Projection) -> dict[str, np.ndarray]:
    arrays = {name: numbers(*shape) for name, shape in declared.files.items()}
    (folder / declared.folder).mkdir()
    for name, array in arrays.items():
        np.save(folder / declared.folder / name, array)
    return arrays


@pytest.mark.parametrize("name", TORCH)
def test_activations_are_torchs(name: str) -> None:
    x = np.concatenate([numbers(5, 7) * 4, np.full((1, 7), 90, np.float32), np.full((1, 7), -90, np.float32)])
    found = ACTIVATIONS[name](x)  # type: ignore[index]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TORCH[name]()(torch.from_numpy(x)).numpy(), atol=2e-6)


@pytest.mark.parametrize(
    "declared",
    [
        Projection(folder="2_Dense", inputs=8, outputs=3),
        Projection(folder="2_Dense", inputs=8, outputs=3, bias=False, activation="identity", unit_input=True),
        Projection(folder="2_Dense", inputs=8, outputs=8, residual=True, activation="relu"),
        Projection(folder="2_Dense", inputs=8, outputs=5, residual=True, activation="gelu"),
    ],
)
def test_a_projection_is_sentence_transformers_dense(declared: Projection, tmp_path: Path) -> None:
    arrays = stored(tmp_path, declared)
    hidden = numbers(4, 6, 8)
    found = TextVectors.open(tmp_path, Encoding(projections=(declared,), normalize=True))(
        hidden, np.ones((4, 6), np.float32)
    )

    vector = torch.from_numpy(hidden).mean(1)
    vector = torch.nn.functional.normalize(vector, dim=1) if declared.unit_input else vector
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    made = torch.nn.functional.linear(vector, weights["weight.npy"], weights.get("bias.npy"))
    made = TORCH[declared.activation]()(made)
    if declared.residual:
        same = "residual.npy" not in weights
        made = made + (vector if same else torch.nn.functional.linear(vector, weights["residual.npy"]))
    np.testing.assert_allclose(found, torch.nn.functional.normalize(made, dim=1).numpy(), atol=1e-5)


def test_projections_follow_one_another() -> None:
    first = Linear(Projection(folder="2_Dense", inputs=4, outputs=2), numbers(2, 4), numbers(2), None)
    second = Linear(Projection(folder="3_Dense", inputs=2, outputs=3, bias=False), numbers(3, 2), None, None)
    hidden, mask = numbers(2, 1, 4), np.ones((2, 1), np.float32)
    found = TextVectors(Encoding(), (first, second))(hidden, mask)
    assert np.array_equal(found, second(first(hidden[:, 0])))


@pytest.mark.parametrize(
    ("array", "said"),
    [(np.zeros((3, 9), np.float32), r"float32 \(3, 9\)"), (np.zeros((3, 8)), "float64"), (None, "cannot be read")],
)
def test_numbers_that_do_not_fit_are_refused(array: np.ndarray | None, said: str, tmp_path: Path) -> None:
    declared = Projection(folder="2_Dense", inputs=8, outputs=3, bias=False)
    stored(tmp_path, declared)
    place = tmp_path / "2_Dense" / "weight.npy"
    place.unlink()
    if array is not None:
        np.save(place, array)
    with pytest.raises(ArtifactError, match=said):
        TextVectors.open(tmp_path, Encoding(projections=(declared,)))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    declared = Projection(folder="2_Dense", inputs=8, outputs=3, bias=False)
    stored(tmp_path, declared)
    np.save(tmp_path / "2_Dense" / "weight.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ArtifactError, match="cannot be read"):
        TextVectors.open(tmp_path, Encoding(projections=(declared,)))
