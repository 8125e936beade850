"""Where the data that comes with the program lies: recipes, calibration texts, the story model. Knows no format of theirs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from aiasst.errors import ArtifactError

HELD_OUT_NAME = "held-out.jsonl"
"""In the folder calibration: what accuracy is measured on, and what calibration itself never reads."""


def data_folder(name: str) -> Path:
    """Folder `name` (recipes, calibration, checkpoints) of the installation, or of the checkout in an editable install."""
    shipped = Path(str(resources.files("aiasst"))) / "_data" / name
    if shipped.is_dir():
        return shipped
    return Path(__file__).resolve().parents[2] / name


def story_checkpoint() -> Path:
    """The story checkpoint as a Hugging Face folder (Llama architecture, 7.3 M parameters, fp16 safetensors)."""
    return _shipped_folder("story-7m")


def default_model() -> Path:
    """The story checkpoint as a model folder, converted and quantized to int8: what `aiasst chat` runs without a DIR."""
    return _shipped_folder("story-7m-int8")


def _shipped_folder(name: str) -> Path:
    path = data_folder("checkpoints") / name
    if not path.is_dir():
        raise ArtifactError(
            f"this installation lacks the folder {path}", "install aiasst again, or name a model folder"
        )
    return path
