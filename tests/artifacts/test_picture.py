from __future__ import annotations

from pathlib import Path

import pytest

from aiasst.artifacts import picture
from aiasst.errors import MissingExtraError, UsageError


def test_no_picture_is_promised_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no PNG"):
        picture.check_picture(tmp_path / "plan.jpg")
    with pytest.raises(UsageError, match="no folder"):
        picture.check_picture(tmp_path / "absent" / "plan.png")
    picture.check_picture(tmp_path / "plan.png")
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        picture.check_picture(tmp_path / "plan.png")
