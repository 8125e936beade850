"""The wheel carries what the program needs besides its code, and nothing of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "HATCH_BUILD_CLEAN": ""}
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("folder", ["recipes", "calibration", "checkpoints"])
def test_data_ships(names: set[str], folder: str) -> None:
    expected = {
        f"aiasst/_data/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*") if path.is_file()
    }
    assert expected
    assert expected <= names


def test_code_ships_with_its_types_and_texts(names: set[str]) -> None:
    devices = {f"aiasst/profile/devices/{path.name}" for path in (ROOT / "aiasst/profile/devices").glob("*.json")}
    assert devices
    assert devices | {"aiasst/profile/models.json"} <= names
    assert {"aiasst/cli/app.py", "aiasst/py.typed", "aiasst/convert/verify_text.txt"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
