"""The file of grids: what was written is read, module by module; what is no such file is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.grids import GridsWriter, ImportedGrids, ModuleGrid, row_digests
from aiasst.errors import ArtifactError


def grid(bits: int = 4, groups: np.ndarray | None = None) -> ModuleGrid:
    generator = np.random.default_rng(bits)
    scales = generator.standard_normal((3, 2)).astype(np.float32)
    return ModuleGrid(bits, 32, scales, generator.integers(0, 4, (3, 2)).astype(np.uint8), groups)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    order = np.tile(np.arange(2, dtype=np.int32), 32)
    with GridsWriter(tmp_path / "grids", "gptq") as writer:
        writer.add("a", grid(), row_digests(rows), 64)
        writer.add("b", grid(8, order), row_digests(rows[::-1]), 64)
    read = ImportedGrids(tmp_path / "grids")
    assert read.method == "gptq"
    assert [(m.name, m.bits, m.group_size, m.k) for m in read.modules] == [("a", 4, 32, 64), ("b", 8, 32, 64)]
    first, second = (read.grid(module) for module in read.modules)
    assert np.array_equal(first.scales, grid().scales)
    assert np.array_equal(second.zero_points, grid(8).zero_points)
    assert first.groups is None
    assert np.array_equal(second.group_of_inputs(64), order)
    assert np.array_equal(read.digests(read.modules[1]), read.digests(read.modules[0])[::-1])


def test_a_row_has_one_fingerprint_however_it_lies() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
    assert np.array_equal(row_digests(rows), row_digests(np.asfortranarray(rows)))
    assert len(set(row_digests(rows).tolist())) == 5


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_another_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "grids").write_bytes(content)
    with pytest.raises(ArtifactError, match="grids"):
        ImportedGrids(tmp_path / "grids")


def test_an_interrupted_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), GridsWriter(tmp_path / "grids", "gptq"):
        raise RuntimeError
    with pytest.raises(ArtifactError, match="grids"):
        ImportedGrids(tmp_path / "grids")
