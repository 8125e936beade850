"""What a graphics card could do with a model in a runtime that uses it. This program's formats run on the CPU today: no promise.

Decoding reads all weights and the cache at a share of the card's bandwidth; a prompt is multiplied in half precision at a
share of what its units could do, whatever the format its weights are stored in. The cache is in half precision there.
"""

from __future__ import annotations

from aiasst.profile.library import GraphicsCard
from aiasst.profile.offers import Form
from aiasst.profile.predict import SEQUENCES, SHORT_PAST, Prediction, Workload
from aiasst.profile.ranges import Range, total
from aiasst.profile.shapes import CACHE_BYTES, ModelShape

_READ_SHARE = Range(0.5, 0.72, 0.9)
_MULTIPLY_SHARE = Range(0.12, 0.3, 0.6)
_LAUNCH = Range(1e-4, 4e-4, 2e-3)
"""Seconds of a step beside its reading: launching kernels, sampling."""
_ROW = Range(2e-6, 1e-5, 5e-5)
_WEIGHTS = Range(1.0, 1.03, 1.1)
_PROGRAM_BYTES = Range(4e8, 7e8, 1.2e9)
_USABLE = 0.94
"""Of its memory: the rest draws the screen."""
_HALF = 2


def predict_on_card(shape: ModelShape, form: Form, workload: Workload, card: GraphicsCard) -> Prediction:
    """The same figures as for the CPU, of a runtime that uses the card."""
    cache = workload.context * shape.cache_bytes_per_token * _HALF // CACHE_BYTES
    stored = _WEIGHTS.times(form.disk_bytes)
    reading = _READ_SHARE.times(card.gigabytes_per_second * 1e9)
    multiplying = _MULTIPLY_SHARE.times(card.half_teraflops * 1e12 / 2)
    macs = sum(part.matrix.elements * part.share for part in form.layers)
    tokens = workload.prompt
    prompt = multiplying.under(tokens * (macs + shape.attended(tokens / 2))) + reading.under(form.read_bytes) + _LAUNCH

    def steps(past: float) -> tuple[tuple[int, Range], ...]:
        token = shape.cache_bytes_per_token * _HALF / CACHE_BYTES
        reads = [(count, form.read_bytes + count * past * token) for count in SEQUENCES]
        return tuple((count, total((reading.under(read), _LAUNCH, _ROW.times(count)))) for count, read in reads)

    return Prediction(
        form=form,
        resident=total((stored, Range(0.25 * cache, cache, cache), _PROGRAM_BYTES)),
        cache_bytes=cache,
        ceiling_bytes=int(_USABLE * card.gibibytes * 2**30),
        prefill=prompt,
        steps=steps(SHORT_PAST),
        full_steps=steps(workload.context),
        workload=workload,
    )
