"""The two chains of activations: where each stands between layers, and running it through one. Knows no weight and no rounding.

Activations between layers lie on disk, a file a batch and boundary, so that memory holds one batch and a killed run goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.quantize.calibrate.activations import ActivationStore
from aiasst.quantize.calibrate.layers import Layer, LayeredModel
from aiasst.quantize.matrix import FloatMatrix

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


class Chain:
    """One chain: the values at the boundary before each layer, as far as it has come."""

    def __init__(self, model: LayeredModel, folder: Path, name: str, batches: Sequence[Ids]) -> None:
        """`folder` holds the boundaries; `batches` are token ids [sequences, length] each."""
        self._model = model
        self._folder = folder
        self._name = name
        self._batches = batches

    def ready(self, layer: Layer) -> bool:
        """Whether what enters `layer` is there."""
        return self._is_first(layer) or ActivationStore(self._folder_of(layer.index)).is_complete

    def inputs(self, layer: Layer, batch: int, names: Sequence[str]) -> dict[str, Array]:
        """The values `names` of those that enter `layer`, of one batch."""
        if self._is_first(layer):
            feeds = self._model.first_feeds(self._batches[batch])
            return {name: feeds[name] for name in names}
        return ActivationStore(self._folder_of(layer.index)).read(batch, names)

    def run(
        self, layer: Layer, outputs: Sequence[str], replaced: Mapping[str, FloatMatrix] | None = None
    ) -> Iterator[dict[str, Array]]:
        """The values `outputs` of each batch, in order, with the weights `replaced` in place of the originals."""
        if not set(outputs) - set(layer.inputs):
            for batch in range(len(self._batches)):
                yield self.inputs(layer, batch, outputs)
            return
        session = self._model.open(layer, outputs, replaced or {})
        for batch in range(len(self._batches)):
            feeds = self.inputs(layer, batch, session.input_names)
            yield dict(zip(outputs, session.run(feeds, outputs), strict=True))

    def advance(self, layer: Layer) -> None:
        """Take the chain behind `layer`, weights as they are."""
        store = self.begin(layer)
        for batch, values in enumerate(self.run(layer, layer.outputs)):
            store.write(batch, values)
        store.complete()

    def begin(self, layer: Layer) -> ActivationStore:
        """An empty store for what leaves `layer`."""
        shutil.rmtree(self._folder_of(layer.index + 1), ignore_errors=True)
        return ActivationStore(self._folder_of(layer.index + 1))

    def outputs(self, layer: Layer, batch: int) -> dict[str, Array]:
        """What has left `layer`, of one batch."""
        return ActivationStore(self._folder_of(layer.index + 1)).read(batch)

    def forget(self, layer: Layer) -> None:
        """Throw away what entered `layer`: nobody will ask again."""
        shutil.rmtree(self._folder_of(layer.index), ignore_errors=True)

    def _is_first(self, layer: Layer) -> bool:
        return layer.index == self._model.layers[0].index

    def _folder_of(self, index: int) -> Path:
        return self._folder / f"{index:04}-{self._name}"
