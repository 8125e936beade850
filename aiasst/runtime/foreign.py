"""Errors of ONNX Runtime in our own tree, at the seam where they arise. Knows no session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxruntime.capi import onnxruntime_pybind11_state as state

from aiasst.errors import ArtifactError, ResourceError

_BROKEN_FILE = (
    state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile, state.NoModel, state.NotFound, state.NotImplemented,
)  # fmt: skip
_FAILED = (
    state.Fail, state.RuntimeException, state.InvalidArgument, state.EPFail, state.EngineError, state.DeviceReset,
)  # fmt: skip
_MEMORY = ("bad_alloc", "allocate memory", "out of memory", "bfcarena", "bad allocation")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise ArtifactError where `what` is broken or cannot be computed, ResourceError where memory or a device failed."""
    try:
        yield
    except MemoryError as error:
        raise _no_memory(what) from error
    except _BROKEN_FILE as error:
        raise ArtifactError(f"ONNX Runtime cannot use {what}: {_short(error)}", _NEW_FOLDER) from error
    except _FAILED as error:
        if any(word in str(error).lower() for word in _MEMORY):
            raise _no_memory(what) from error
        if isinstance(error, state.EPFail | state.EngineError | state.DeviceReset):
            raise ResourceError(f"the device failed on {what}: {_short(error)}", _OTHER_DEVICE) from error
        raise ArtifactError(f"ONNX Runtime cannot run {what}: {_short(error)}", _NEW_FOLDER) from error


_NEW_FOLDER = "convert or quantize the checkpoint again with this version"
_OTHER_DEVICE = "see what loads here: aiasst profile"


def _no_memory(what: str) -> ResourceError:
    return ResourceError(
        f"there is not enough memory for {what}", "take a smaller format (aiasst quantize --bits 4) or fewer slots"
    )


def _short(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + "…"
