"""What a text puts into the caches of a float model: it goes through the layers once, one at a time. Knows no node.

Keys are seen as they are kept, after rotary embedding. Memory is a layer and the activations of some sequences, as it is for
calibration; activations between layers lie on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aiasst.errors import ArtifactError
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize.cache.nodes import CacheTensor
from aiasst.quantize.cache.scales import Floats, channel_scales, largest_magnitudes, shared_by_pairs
from aiasst.quantize.calibrate.chains import Chain
from aiasst.quantize.calibrate.estimate import cache_sequences_at_once
from aiasst.quantize.calibrate.layers import Layer, LayeredModel
from aiasst.quantize.calibrate.samples import Samples

STAGE = "cache scales"
MOST_SEQUENCES = 16
"""Of the calibration text: what some thousand tokens do not show, the scales have headroom for."""


@dataclass(frozen=True)
class CacheCalibration:
    """The caches of a model and the text that their scales are found on, ready to begin."""

    model: LayeredModel
    tensors: tuple[CacheTensor, ...]
    samples: Samples
    sequences_at_once: int

    @classmethod
    def prepare(cls, model: LayeredModel, tensors: tuple[CacheTensor, ...], samples: Samples) -> CacheCalibration:
        """For the first sequences of `samples`."""
        some = replace(samples, ids=samples.ids[:MOST_SEQUENCES])
        return cls(model, tensors, some, cache_sequences_at_once(some.ids.shape[1]))

    def scales(self, work: Path, progress: ProgressFn = silent) -> dict[str, Floats]:
        """Scales float32 [1, heads, 1, head_dim] of every cache by its output's name; uses the empty or absent folder `work`.

        Raises:
            ArtifactError: a key or a value is not finite, or a layer does not run.
            ResourceError: memory is short.
            OSError: the disk is full.
        """
        ids, step = self.samples.ids, self.sequences_at_once
        kinds = {tensor.present: tensor for tensor in self.tensors}
        batches = [ids[start : start + step] for start in range(0, len(ids), step)]
        chain = Chain(self.model, work, "float", batches)
        scales: dict[str, Floats] = {}
        for layer in self.model.layers:
            progress(Progress(STAGE, layer.index, len(self.model.layers), layer.title))
            names = [name for name in layer.caches if name in kinds]
            scales |= {
                name: self._scales_of(kinds[name], seen)
                for name, seen in zip(names, _walk(chain, layer, names), strict=True)
            }
            if len(scales) == len(kinds):
                break
        progress(Progress(STAGE, len(self.model.layers), len(self.model.layers)))
        return scales

    def _scales_of(self, tensor: CacheTensor, magnitudes: Floats) -> Floats:
        if not np.isfinite(magnitudes).all():
            raise ArtifactError(
                f"the cache {tensor.present} holds numbers that are not finite on the calibration text",
                "the checkpoint overflows in float32, or is damaged: leave out --cache int8",
            )
        return channel_scales(magnitudes if tensor.rotation is None else shared_by_pairs(magnitudes, tensor.rotation))


def _walk(chain: Chain, layer: Layer, names: Sequence[str]) -> list[Floats]:
    """Take `chain` behind `layer`; the largest magnitudes of its caches `names` on the way."""
    seen: dict[str, Floats] = {}
    leaving = chain.begin(layer)
    for batch, values in enumerate(chain.run(layer, (*layer.outputs, *names))):
        leaving.write(batch, {name: values[name] for name in layer.outputs})
        for name in names:
            largest = largest_magnitudes(values[name])
            seen[name] = np.maximum(seen[name], largest) if name in seen else largest
    leaving.complete()
    chain.forget(layer)
    return [seen[name] for name in names]
