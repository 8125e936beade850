"""Which forms of a model are opened: the first alone, or its twin beside it, as a device config says. Decides nothing itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aiasst.artifacts.device import Decisions
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.runtime.pair import PairedSession
from aiasst.runtime.session import DecoderSession, settings_from


def open_decoder(
    folder: ModelFolder, decisions: Decisions, *, profile: Path | None = None
) -> DecoderSession | PairedSession:
    """Open the decoder of a model folder; both forms where it has two and `decisions` want both.

    With `profile` ONNX Runtime's profiler is on in the first form; see `SessionSettings`.

    Raises:
        ArtifactError: the folder is no causal decoder, or a graph is damaged.
        ResourceError: the execution provider does not load, or memory is short.
    """
    first = DecoderSession.open(folder, replace(settings_from(decisions), profile=profile))
    decided = decisions.twin
    if folder.manifest.twin is None or decided is None or not decided.use:
        return first
    twin = DecoderSession.open(folder, settings_from(decisions, rests=True), twin=True)
    return PairedSession(first, twin, from_rows=decided.from_rows)


def forms_of(session: DecoderSession | PairedSession) -> tuple[DecoderSession, ...]:
    """The sessions that are open."""
    return (session.first, session.twin) if isinstance(session, PairedSession) else (session,)


def forms_in_words(folder: ModelFolder, decisions: Decisions) -> str:
    """A line on which forms of the folder run, and why; empty where it has one."""
    if folder.manifest.twin is None:
        return ""
    if decisions.twin is None:
        return "one form of two runs: the device config says nothing of a second"
    if not decisions.twin.use:
        return f"one form of two runs: {decisions.twin.reason}"
    return f"two forms run, w8a8 from {decisions.twin.from_rows} rows up: {decisions.twin.reason}"
