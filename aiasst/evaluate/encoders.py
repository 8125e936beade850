"""What a card says of an encoder: how near its vectors stay to its original's, and how it scores. Composes; computes little."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.card import MeasuredText, TaskScores
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import UsageError
from aiasst.evaluate.fitness import finite
from aiasst.evaluate.scoring import Task, TaskData, is_cross_encoder, load_task, spearman
from aiasst.evaluate.similarity import Text, TextEncoder, cosines
from aiasst.evaluate.texts import DEFAULT_TOKENS, held_out_path, ids_hash, read_passages
from aiasst.progress import ProgressFn, silent
from aiasst.runtime.session import SessionSettings
from aiasst.tokenizer.inputs import EncoderInput

Floats = npt.NDArray[np.float32]

_CLASSIFIER = "text-classification"


def measure_encoder(
    folder: ModelFolder,
    against: ModelFolder | None,
    *,
    text: Path | None,
    tokens: int | None,
    task: TaskData | None,
    settings: SessionSettings,
    progress: ProgressFn = silent,
) -> dict[str, Any]:
    """Fields of the card: likeness to `against` where there is one, scores where there is a task.

    Likeness is measured on the lines of `text`; where None on the texts of the task, else on the held-out text. A cross-encoder
    reads each line together with the one behind it, and likeness is that of its scores.

    Raises:
        ArtifactError: a folder is no encoder of text, a file is unfit, or the answers are no numbers.
        UsageError: there is neither an original nor a task, or the model is of the wrong kind for the task.
        ResourceError: the execution provider does not load, or memory is short.
    """
    if against is None and task is None:
        raise UsageError(
            f"{folder.path} is an encoder ({folder.manifest.task}): alone it has nothing to be measured by",
            "compare it: --against ORIGINAL, or score it: --task sts --data FILE.csv",
        )
    data = None if task is None else load_task(task, folder)
    encoder = TextEncoder.open(folder, settings)
    original = None if against is None else TextEncoder.open(against, settings)
    found: dict[str, Any] = {}
    if data is not None:
        found["scores"] = _scores(data, folder, encoder, original, progress)
    if original is not None:
        chosen, measured = _choose(encoder, text, tokens, data, paired=is_cross_encoder(folder))
        found |= _likeness(chosen, folder, encoder, original, progress)
        found["text"] = measured
    return found


def _scores(
    task: Task, folder: ModelFolder, encoder: TextEncoder, original: TextEncoder | None, progress: ProgressFn
) -> TaskScores:
    texts = [encoder.encode(text) for text in task.texts]
    before = None if original is None else task.score(original.vectors(texts, progress, "original"))
    after = task.score(_vectors(texts, folder, encoder, progress))
    return TaskScores(
        task=task.name, data=task.data, rows=task.rows, sha256=task.sha256, before=before, after=after
    )  # fmt: skip


def _likeness(
    texts: Sequence[EncoderInput],
    folder: ModelFolder,
    encoder: TextEncoder,
    original: TextEncoder,
    progress: ProgressFn,
) -> dict[str, Any]:
    before = original.vectors(texts, progress, "original")
    after = _vectors(texts, folder, encoder, progress)
    if is_cross_encoder(folder):
        return _likeness_of_scores(np.concatenate(before), np.concatenate(after))
    similarity = cosines(before, after)
    found: dict[str, Any] = {"similarity_mean": float(similarity.mean()), "similarity_min": float(similarity.min())}
    if folder.manifest.task == _CLASSIFIER:
        same = [a.argmax() == b.argmax() for a, b in zip(before, after, strict=True)]
        found["top1_agreement"] = float(np.mean(same))
    return found


def _likeness_of_scores(before: Floats, after: Floats) -> dict[str, Any]:
    """Of logits float32 [pairs]: how far they moved beside how they are spread, and whether the order is the same."""
    moved = float(np.sqrt(np.square(after - before, dtype=np.float64).mean()))
    return {
        "score_rank_correlation": spearman(before.astype(np.float64), after.astype(np.float64)),
        "score_change": moved / max(float(before.std(dtype=np.float64)), 1e-12),
    }


def _vectors(
    texts: Sequence[EncoderInput], folder: ModelFolder, encoder: TextEncoder, progress: ProgressFn
) -> list[Floats]:
    vectors = encoder.vectors(texts, progress, "evaluate")
    for vector in vectors:
        finite(float(np.abs(vector).max()), folder)
    return vectors


def _choose(
    encoder: TextEncoder, text: Path | None, tokens: int | None, task: Task | None, *, paired: bool
) -> tuple[list[EncoderInput], MeasuredText]:
    """The sentences that likeness is measured on, in tokens: as many as `tokens` allow; with `paired`, each with the next one."""
    path = text or (None if task is not None else held_out_path())
    if path is not None:
        sentences: list[Text] = list(_lines(path))
        name = path.name
        if paired:
            sentences = list(pairwise(_lines(path)))
    else:
        assert task is not None
        sentences, name = list(task.texts), task.data
    left = tokens if tokens is not None else DEFAULT_TOKENS if path is not None else None
    chosen: list[EncoderInput] = []
    for sentence in sentences:
        read = encoder.encode(sentence)
        if left is not None:
            if len(read.ids) > left:
                break
            left -= len(read.ids)
        chosen.append(read)
    if not chosen:
        raise UsageError(f"{name} has no sentence to measure on", "give a longer text, or more --tokens")
    joined = np.concatenate([read.ids for read in chosen])
    measured = MeasuredText(
        name=name,
        shipped=text is None and task is None,
        tokens=len(joined),
        passages=len(chosen),
        window=None,
        scored=None,
        sha256=ids_hash(joined),
    )
    return chosen, measured


def _lines(path: Path) -> list[str]:
    """The lines of a text that are not empty: sentences, for an encoder."""
    return [line.strip() for passage in read_passages(path) for line in passage.text.splitlines() if line.strip()]
