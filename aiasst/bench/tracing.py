"""The work once more with ONNX Runtime's profiler on: where a step goes, and a trace of it. Its times make no speed.

The profiler writes every node of every run, so that steps take longer with it; how much longer is told beside the figures.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.bench.chrome_trace import trace_document
from aiasst.bench.measure import Amounts
from aiasst.bench.operators import Breakdown, Pass, Roles, Run, breakdown, runs_of
from aiasst.bench.spans import Recorder, Span
from aiasst.bench.work import Bench, Sample
from aiasst.progress import Progress, ProgressFn, silent

STAGE = "trace"
STEPS, PROMPTS, WARM_STEPS = 16, 3, 4
"""Steps of decoding, prompts read; and steps before, which pack, allocate and bind."""


@dataclass(frozen=True)
class Traced:
    """Where the work goes, and the trace file's content."""

    prefill: Breakdown
    """Of a whole prompt."""
    decode: dict[int, Breakdown]
    """Of a step, by the number of sequences."""
    document: dict[str, Any]


def trace(
    model: ModelFolder, device: DeviceConfig, amounts: Amounts, facts: dict[str, str], progress: ProgressFn = silent
) -> Traced:
    """Do a little of every kind of work with the profiler on. Nothing is written but a temporary folder, which goes away.

    Of a folder of two forms the first one does all of it: two profiles have two clocks.

    Args:
        model: the folder.
        device: as measured with.
        amounts: the prompt's tokens, and numbers of sequences, of which the first and the last are taken.
        facts: about the machine, for the trace file.
        progress: told of every kind.

    Raises:
        ResourceError: the model cannot be opened once more.
    """
    recorder = Recorder()
    wanted = tuple(dict.fromkeys((amounts.counts[0], amounts.counts[-1])))
    alone = device.model_copy(update={"decisions": device.decisions.model_copy(update={"twin": None})})
    with tempfile.TemporaryDirectory(prefix="aiasst-trace-") as folder:
        work = Bench(model, alone, slots=max(wanted), profile=Path(folder) / "profile", watcher=recorder)
        pieces = [_decode(work, recorder, count, min(STEPS, amounts.steps), progress) for count in wanted]
        pieces.append(_prefill(work, recorder, amounts.prompt, progress))
        runs = runs_of(json.loads(work.end_profiling().read_text(encoding="utf-8")))
    paired = list(zip(recorder.runs, runs, strict=True))
    weights = model.manifest.weights
    *decode, prefill = (breakdown(_passes(piece, paired), weights) for piece in pieces)
    progress(Progress(STAGE, 1, 1, f"{sum(len(run.operators) for run in runs)} operators"))
    spans = _spans(pieces, recorder)
    shown = [(span, run) for span, run in paired if any(p.span.begin <= span.begin < p.span.end for p in pieces)]
    document = trace_document(spans, shown, Roles(weights), name=f"aiasst bench {model.path.name}", facts=facts)
    return Traced(prefill, dict(zip(wanted, decode, strict=True)), document)


@dataclass(frozen=True)
class _Piece:
    """Work that was done: its passes as steps of the engine."""

    name: str
    passes: tuple[tuple[Span, ...], ...]

    @property
    def span(self) -> Span:
        """From its first step to its last."""
        return Span(self.name, self.passes[0][0].begin, self.passes[-1][-1].end)


def _decode(work: Bench, recorder: Recorder, count: int, steps: int, progress: ProgressFn) -> _Piece:
    name = f"decode, {count} sequence{'s' if count > 1 else ''}"
    progress(Progress(STAGE, 0, 1, name))
    work.decode(count, WARM_STEPS, seed=0)
    sample = work.decode(count, steps, seed=1)
    return _Piece(name, tuple((step,) for step in _last_steps(recorder, sample)))


def _prefill(work: Bench, recorder: Recorder, tokens: int, progress: ProgressFn) -> _Piece:
    name = f"prefill, {tokens} tokens"
    progress(Progress(STAGE, 0, 1, name))
    work.prefill(tokens, seed=0)
    passes = tuple(_last_steps(recorder, work.prefill(tokens, seed=seed)) for seed in range(1, PROMPTS + 1))
    return _Piece(name, passes)


def _last_steps(recorder: Recorder, sample: Sample) -> tuple[Span, ...]:
    """The steps that a sample counted, which are the last ones made."""
    return tuple(recorder.steps[-len(sample.steps) :])


def _passes(piece: _Piece, paired: Sequence[tuple[Span, Run]]) -> list[Pass]:
    found = []
    for steps in piece.passes:
        inside = [(span, run) for span, run in paired for step in steps if step.begin <= span.begin < step.end]
        seconds = sum(step.seconds for step in steps)
        found.append(Pass(seconds, sum(span.seconds for span, _ in inside), tuple(run for _, run in inside)))
    return found


def _spans(pieces: Sequence[_Piece], recorder: Recorder) -> list[Span]:
    """The pieces, and what lies in them."""
    inner = [*recorder.steps, *recorder.phases, *recorder.runs]
    return [
        span
        for piece in pieces
        for span in (piece.span, *(s for s in inner if piece.span.begin <= s.begin and s.end <= piece.span.end))
    ]
