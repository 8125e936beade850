"""How fast the two forms of a model folder run here, by the number of rows: the model itself is run, not a product of its size.

New tokens of one sequence stand for rows of any kind: the products, where the forms differ, see the same. Decides nothing.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from aiasst.artifacts.device import Costs, Decisions, FormsPoint
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.runtime.session import DecoderSession, settings_from

STAGE = "forms"
TOKENS = (2, 4, 8, 12, 16, 32, 128)
_SECONDS = 12.0
"""After this long no larger number of tokens is begun."""
_LEAST_REPEATS, _MOST_REPEATS, _POINT_SECONDS = 3, 12, 1.0


def measure_forms(folder: ModelFolder, costs: Costs, decisions: Decisions, *, progress: ProgressFn = silent) -> Costs:
    """`costs` with what runs of both forms of `folder` take, in turn; as they were where `decisions` find no room for both.

    Raises:
        ArtifactError: a graph is damaged.
        ResourceError: the execution provider does not load, or memory is short.
    """
    if decisions.twin is None or not decisions.twin.use:
        return costs
    progress(Progress(STAGE, 0, len(TOKENS), folder.path.name))
    settings = settings_from(decisions, rests=True)
    forms = DecoderSession.open(folder, settings), DecoderSession.open(folder, settings, twin=True)
    points: list[FormsPoint] = []
    begun = time.perf_counter()
    for done, tokens in enumerate(count for count in TOKENS if count <= forms[0].context_length):
        if points and time.perf_counter() - begun > _SECONDS:
            break
        progress(Progress(STAGE, done, len(TOKENS), f"{tokens} tokens at once"))
        points.append(measure_point(*forms, tokens))
    progress(Progress(STAGE, len(TOKENS), len(TOKENS), f"{len(points)} sizes of a run"))
    return costs.model_copy(update={"forms": tuple(points)})


def measure_point(first: DecoderSession, twin: DecoderSession, tokens: int) -> FormsPoint:
    """Best of some runs of `tokens` new tokens through each form, in turn; the cache is empty before each."""
    shape = (1, first.kv_heads, tokens, first.head_dim)
    cache = [np.empty(shape, first.cache_dtype) for _ in range(2 * first.layers)]
    ids = np.random.default_rng(tokens).integers(0, first.vocab_size, (1, tokens))
    samples: tuple[list[float], list[float]] = [], []
    begun = time.perf_counter()
    # The first run of a size allocates, and does not count.
    for repeat in range(_MOST_REPEATS + 1):
        if repeat > _LEAST_REPEATS and time.perf_counter() - begun > _POINT_SECONDS:
            break
        for form, taken in zip((first, twin), samples, strict=True):
            began = time.perf_counter()
            form.step(ids, (tokens,), cache)
            taken.append(time.perf_counter() - began)
    times = [sorted(taken[1:]) for taken in samples]
    return FormsPoint(
        tokens=tokens,
        first_milliseconds=round(times[0][0] * 1e3, 4),
        twin_milliseconds=round(times[1][0] * 1e3, 4),
        noise=round(max(statistics.median(each) / each[0] - 1 for each in times), 3),
    )
