"""Whether the first steps of real work take what the costs of a device config predict. Knows seconds by rows; runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiasst.artifacts.device import DeviceConfig
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.profile.offers import form_of, shape_of_folder
from aiasst.profile.predict import step_range
from aiasst.profile.ranges import Range
from aiasst.profile.speeds import measured

FAR = 1.5
"""Beyond what is predicted, or below it, by this factor."""
LONG_PAST = 512
"""Tokens behind a sequence, at most, that a step is predicted with: real work is between none and these."""

ExpectFn = Callable[[int], Range | None]
"""Number of sequences → seconds of a decode step; None: not predicted."""
DriftFn = Callable[[Sequence[tuple[int, float]]], str]
"""(sequences, seconds of a decode step) as they were measured → a line where they are far off, else nothing."""


def expected(folder: ModelFolder, config: DeviceConfig) -> ExpectFn | None:
    """What a decode step of the model in `folder` should take by `config`; None where it holds no measurements.

    A second form of the folder is not reckoned with: where it runs, steps are as fast as the first one's or faster.

    Raises:
        UnsupportedModelError: it generates no text.
    """
    if not config.costs.matmul:
        return None
    shape = shape_of_folder(folder.manifest)
    form, speeds = form_of(folder.manifest, shape), measured(config.hardware, config.costs)
    past = min(LONG_PAST, shape.context_length)

    def seconds(rows: int) -> Range | None:
        short, long = (step_range(shape, form, speeds, rows, tokens) for tokens in (0, past))
        return None if short is None or long is None else Range(short.low, short.value, long.high)

    return seconds


def drift(expect: ExpectFn, steps: Sequence[tuple[int, float]]) -> str:
    """A line on the steps of most sequences among `steps` that are far off; empty where none is."""
    for rows, seconds in sorted(steps, reverse=True):
        range_ = expect(rows)
        if range_ is None or range_.low / FAR <= seconds <= range_.high * FAR:
            continue
        how = "slower" if seconds > range_.high else "faster"
        why = (
            "other work runs here, it is throttled, or it has changed"
            if how == "slower"
            else "it was busy when measured"
        )
        of = "one sequence" if rows == 1 else f"{rows} sequences"
        return (
            f"this machine is {how} than the device config says: a step of {of} takes {seconds * 1e3:.1f} ms, "
            f"{range_.low * 1e3:.1f} to {range_.high * 1e3:.1f} ms by its costs ({why}); "
            "measure anew: aiasst profile DIR -o device.json"
        )
    return ""
