"""The written model, opened in ONNX Runtime and run once: a folder that does not compute is never left behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts import signature
from aiasst.errors import ArtifactError, ExportError
from aiasst.runtime.session import GraphSession

Feeds = Mapping[str, npt.NDArray[Any]]

_HINT = "this is a fault of aiasst: report it with the model's name and the recipe; another recipe may work"
_TOKENS = 4


def check_runs(graph: Path, original: Path) -> None:
    """Run the model at `graph` on a few tokens and look at the results.

    A foreign graph may refuse any input we can think of; so where it fails, `original` has the last word: if that runs on
    such inputs as well, the new graph is at fault.

    Raises:
        ExportError: it does not open, does not run, or gives numbers that are not finite, though the original does.
    """
    try:
        session = GraphSession.open(graph)
    except ArtifactError as error:
        raise ExportError(f"the quantized model does not open: {error.message}", _HINT) from error
    feeds = made_up_inputs(session)
    fault = _fault(session, feeds)
    del session
    if fault and _runs(original):
        raise ExportError(f"the quantized model {fault}, and the original does not", _HINT)


def _runs(original: Path) -> bool:
    session = GraphSession.open(original)
    # Its own inputs: a cache of another type is fed another way. Numbers are the same for both.
    return not _fault(session, made_up_inputs(session))


def _fault(session: GraphSession, feeds: Feeds) -> str:
    """What is wrong with a run; empty when all is well."""
    try:
        results = session.run(feeds)
    except ArtifactError as error:
        return f"fails: {error.message}"
    for name, result in zip(session.output_names, results, strict=True):
        if np.issubdtype(result.dtype, np.floating) and not np.isfinite(result).all():
            return f"gives numbers in '{name}' that are not finite"
    return ""


def made_up_inputs(session: GraphSession) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the right types and shapes: a few tokens, nothing in the cache, small random numbers for the rest."""
    generator = np.random.default_rng(0)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for name in session.input_names:
        shape = tuple(_size(name, axis, size) for axis, size in enumerate(session.input_shape(name)))
        dtype = session.input_dtype(name)
        if np.issubdtype(dtype, np.floating):
            feeds[name] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[name] = np.ones(shape, dtype=dtype)
    return feeds


def _size(name: str, axis: int, size: int | str | None) -> int:
    """A size for a dimension: the graph's own, else one row, a few tokens, no past."""
    if isinstance(size, int):
        return size
    if axis == 0:
        return 1
    return 0 if name.startswith(signature.past_key(0).split(".")[0]) else _TOKENS
