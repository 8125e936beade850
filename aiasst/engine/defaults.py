"""How a checkpoint itself wants to be sampled, from its `generation_config.json`. Knows no request and no engine.

The file is Hugging Face's: without `do_sample` its temperature and filters are not in use there, so they are not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiasst.artifacts.document import read_json
from aiasst.engine.requests import Sampling
from aiasst.errors import PromptError

FALLBACK = Sampling(temperature=0.8, top_p=0.95)
"""For checkpoints that say nothing: varied, without the tail of unlikely tokens that small models stumble over."""

_FILTERS = ("temperature", "top_k", "top_p", "min_p")


def default_sampling(folder: Path) -> Sampling:
    """The sampling that the checkpoint in `folder` recommends, FALLBACK where it recommends none or nonsense.

    Raises:
        ArtifactError: generation_config.json is not JSON.
    """
    path = folder / "generation_config.json"
    data = read_json(path, "generation config", "convert the checkpoint again") if path.is_file() else None
    if not isinstance(data, dict):
        return FALLBACK
    filters = {name: getattr(FALLBACK, name) for name in _FILTERS}
    if data.get("do_sample"):
        filters = _present(data, _FILTERS)
    try:
        return Sampling(**filters, **_present(data, ("repetition_penalty",)))
    except PromptError:
        return FALLBACK


def _present(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: data[name] for name in names if data.get(name) is not None}
