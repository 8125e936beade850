"""Beginnings kept from job to job: what is loaded, what is written, and what never stops a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aiasst.errors import ArtifactError, ResourceError
from aiasst.run.prefixes import folder_for, kept


@dataclass
class Engine:
    """Has news to write, or none."""

    news: str = "new"
    loaded: list[str] = field(default_factory=list)

    def load_prefixes(self, path: Path) -> int:
        if path.read_text() == "damaged":
            raise ArtifactError(f"{path.name} is damaged", "")
        self.loaded.append(path.read_text())
        return 1

    def save_shared(self, path: Path) -> int:
        if self.news == "too much":
            raise ResourceError("the disk is full", "")
        return path.write_text(self.news) if self.news else 0


def job(engine: Engine, folder: Path | None) -> list[str]:
    notes: list[str] = []
    with kept(engine, folder, "story", notes.append):
        pass
    return notes


def test_what_one_job_keeps_the_next_one_has(tmp_path: Path) -> None:
    folder = folder_for(tmp_path / "kept")
    assert job(Engine("first"), folder) == []
    engine = Engine("")
    assert job(engine, folder_for(folder)) == []
    assert engine.loaded == ["first"]
    assert (folder / "story.kv").read_text() == "first"
    nothing = Engine()
    job(nothing, None)
    assert nothing.loaded == []


def test_a_damaged_file_is_one_line_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "story.kv").write_text("damaged")
    assert job(Engine(), tmp_path) == ["story.kv is damaged: beginnings are computed anew."]
    assert (tmp_path / "story.kv").read_text() == "new"


def test_what_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    assert job(Engine("too much"), tmp_path) == ["The beginnings are not kept: the disk is full."]


def test_an_interrupted_job_keeps_them_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), kept(Engine(), tmp_path, "story", print):
        raise KeyboardInterrupt
    assert (tmp_path / "story.kv").read_text() == "new"


def test_a_folder_is_made_or_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is no folder"):
        folder_for(tmp_path / "file")
    with pytest.raises(ResourceError, match="may not make the folder"):
        folder_for(tmp_path / "absent" / "folder")
