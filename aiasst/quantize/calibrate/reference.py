"""Logits of a model that is never in memory as a whole: every window goes through the layers first, the head comes last.

The hidden states that enter the head lie on disk, those of the second half of each window; the head is opened once and run
over pieces of them. With other weights in place of the originals it says what a quantized model would answer, before one is
written. Knows no format and no perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import UsageError
from aiasst.evaluate.perplexity import PIECE, Floats, Ids
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize.calibrate.activations import ActivationStore
from aiasst.quantize.calibrate.layers import Layer, LayeredModel

Array = npt.NDArray[Any]
Replaced = Callable[[Layer], Mapping[str, Array]]
"""The constants of a layer that are others than in the source, by name."""

STAGE = "reference"
# Tokens that go through a layer at once.
_TOKENS = 4096


def as_they_are(layer: Layer) -> Mapping[str, Array]:
    """No constant of `layer` is replaced."""
    return {}


class LayeredReference:
    """A decoder that has read some windows of text and can be asked for its logits; a `Scorer` for those windows."""

    def __init__(self, model: LayeredModel, windows: Ids, finals: ActivationStore, replaced: Replaced) -> None:
        """See `prepare`."""
        self._model = model
        self._numbers = {window.tobytes(): number for number, window in enumerate(windows)}
        self._finals = finals
        last = model.layers[-1]
        head = replace(last, inputs=(model.final,), outputs=(model.result,))
        self._head = model.open(head, (model.result,), replaced(last))

    @classmethod
    def prepare(
        cls,
        model: LayeredModel,
        windows: Ids,
        work: Path,
        *,
        replaced: Replaced = as_they_are,
        progress: ProgressFn = silent,
    ) -> LayeredReference:
        """Read `windows` int64 [count, T], using the empty or absent folder `work`.

        Memory is a layer and the activations of a few windows; disk two boundaries: 8 bytes a token and hidden channel.

        Raises:
            UsageError: the model makes no logits, or there is no window.
            ArtifactError: a layer does not run, as with a window that is longer than the context.
            OSError: the disk is full.
        """
        if model.final == model.result or not windows.size:
            raise UsageError("there are no logits to compare", "evaluate a model that generates text, on more text")
        windows = np.ascontiguousarray(windows, dtype=np.int64)
        step = max(1, _TOKENS // windows.shape[1])
        entering: ActivationStore | None = None
        for layer in model.layers:
            progress(Progress(STAGE, layer.index, len(model.layers), layer.title))
            leaving = ActivationStore(work / f"{layer.index:04}")
            _run(model, layer, replaced(layer), windows, step, entering, leaving)
            if entering is not None:
                entering.remove()
            entering = leaving
        progress(Progress(STAGE, len(model.layers), len(model.layers)))
        assert entering is not None
        return cls(model, windows, entering, replaced)

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """See `evaluate.perplexity.Scorer`. Raises ValueError: `window` is none of those that were prepared."""
        number = self._numbers.get(np.ascontiguousarray(window, dtype=np.int64).tobytes())
        if number is None:
            raise ValueError("this window was not prepared")
        finals = self._finals.read(number)[self._model.final]
        targets = window[len(window) - finals.shape[1] :]
        for start in range(0, len(targets), PIECE):
            rows = slice(start, start + PIECE)
            logits = self._head.run({self._model.final: finals[:, rows]}, [self._model.result])[0][0]
            yield logits.astype(np.float32, copy=False), targets[rows]

    def remove(self) -> None:
        """Delete what lies on disk; nothing can be asked for after."""
        self._finals.remove()


def _run(
    model: LayeredModel,
    layer: Layer,
    replaced: Mapping[str, Array],
    windows: Ids,
    step: int,
    entering: ActivationStore | None,
    leaving: ActivationStore,
) -> None:
    """One layer over all windows; behind the last one only what predicts the second half of a window is kept."""
    session = model.open(layer, layer.outputs, replaced)
    for batch, start in enumerate(range(0, len(windows), step)):
        inputs = model.first_feeds(windows[start : start + step]) if entering is None else entering.read(batch)
        results = session.run({name: inputs[name] for name in session.input_names}, layer.outputs)
        if layer is not model.layers[-1]:
            leaving.write(batch, dict(zip(layer.outputs, results, strict=True)))
            continue
        length = windows.shape[1]
        for row, final in enumerate(results[layer.outputs.index(model.final)]):
            leaving.write(start + row, {model.final: final[None, length // 2 - 1 : length - 1]})
    leaving.complete()
