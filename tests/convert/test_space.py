"""Room on the disk: how much a checkpoint needs in float32, and the refusal where it is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aiasst.convert import space
from aiasst.errors import ResourceError
from tests import checkpoints


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_float32_whatever_is_stored(tmp_path: Path, dtype: str) -> None:
    folder = checkpoints.build("llama", tmp_path / dtype, dtype=dtype)
    hidden, heads, inner = 172, 64 + 2 * 32, 576
    layer = hidden * heads + 64 * hidden + 3 * hidden * inner + 2 * hidden
    assert space.float32_bytes(folder) == 4 * (2 * layer + 2 * 105 * hidden + hidden)


def test_a_disk_that_is_too_small_is_refused_by_its_place(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    space.require(tmp_path / "not" / "yet" / "there", 1000)
    with pytest.raises(ResourceError, match=r"needs .* of disk, .* are free"):
        space.require(tmp_path / "not" / "yet" / "there", free * 2)
