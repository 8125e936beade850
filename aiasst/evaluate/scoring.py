"""Labelled data for encoders and what a model earns on it. Knows vectors and labels, no session and no tokenizer.

    sts               sentence, sentence, score   Spearman and Pearson of the cosines with people's scores
    classification    text, label                 accuracy, and F1 averaged over the labels
                      text, text, label           the same of a classifier that reads two texts together

A classifier with one logit (a cross-encoder) is scored on sts: it reads both sentences together, and its logit takes the place of
the cosine. Data are .csv files; a first line that holds names of columns is passed over.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import read_json
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError, UsageError
from aiasst.evaluate.similarity import Text, cosines

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

TaskName = Literal["sts", "classification"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
_CLASSIFIER = "text-classification"
_STS_HINT = "a line is: sentence, sentence, score"
_LABEL_HINT = "a line is: text, label; or of pairs: text, text, label"


@dataclass(frozen=True)
class TaskData:
    """Which task, and where its data are."""

    task: str
    path: Path


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of texts and how alike people found them."""

    data: str
    sha256: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: Doubles
    together: bool = False
    """Whether a model reads both sentences of a pair at once and gives one number."""
    name: TaskName = "sts"

    @property
    def rows(self) -> int:
        """Pairs."""
        return len(self.first)

    @property
    def texts(self) -> Sequence[Text]:
        """The first sentence of every pair, then the second of every pair; or the pairs, where they are read together."""
        return tuple(zip(self.first, self.second, strict=True)) if self.together else (*self.first, *self.second)

    def score(self, vectors: Sequence[Floats]) -> dict[str, float]:
        """Scores by name, of the vectors of `texts`."""
        if self.together:
            alike = np.asarray([vector[0] for vector in vectors], np.float64)
        else:
            alike = cosines(vectors[: self.rows], vectors[self.rows :])
        return {"spearman": spearman(alike, self.scores), "pearson": pearson(alike, self.scores)}


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the label of each, as the classifier numbers them."""

    data: str
    sha256: str
    texts: tuple[Text, ...]
    labels: Ids
    name: TaskName = "classification"

    @property
    def rows(self) -> int:
        """Texts."""
        return len(self.texts)

    def score(self, vectors: Sequence[Floats]) -> dict[str, float]:
        """Scores by name, of the vectors of `texts`."""
        got = np.asarray([vector.argmax() for vector in vectors], np.int64)
        return {"accuracy": float((got == self.labels).mean()), "f1": macro_f1(self.labels, got)}


Task = SentencePairs | LabelledTexts
"""Labelled data that were read: texts for an encoder, and scores of the vectors that it makes of them."""


def load_task(data: TaskData, folder: ModelFolder) -> Task:
    """Read the data of a task that `folder` is to do.

    Raises:
        UsageError: there is no such task, the model is not made for it, or its labels are others.
        ArtifactError: no such file, or a line in it that is no row of this task.
    """
    if data.task not in TASKS:
        raise UsageError(f"there is no task '{data.task}'", f"tasks are {', '.join(TASKS)}")
    classifies = folder.manifest.task == _CLASSIFIER
    if data.task == "sts":
        if is_cross_encoder(folder):
            return replace(read_pairs(data.path), together=True)
        if classifies:
            raise UsageError(f"{folder.path} classifies texts, it embeds none", "score it: --task classification")
        if beyond := folder.encoding.beyond:
            raise UsageError(
                f"{folder.path} cannot be scored: its files ask for {beyond}, which is not in the graph",
                "score this model with sentence-transformers",
            )
        return read_pairs(data.path)
    if not classifies or is_cross_encoder(folder):
        raise UsageError(f"{folder.path} classifies no texts", "score it: --task sts")
    config = read_json(folder.path / "config.json", "configuration", "convert the checkpoint again")
    return read_labelled(data.path, config if isinstance(config, dict) else {})


def is_cross_encoder(folder: ModelFolder) -> bool:
    """Whether it gives two texts one number: how well they go together."""
    return folder.manifest.task == _CLASSIFIER and len(folder.encoding.labels) == 1


def read_pairs(path: Path) -> SentencePairs:
    """The rows `sentence, sentence, score` of a .csv file.

    Raises:
        ArtifactError: no such file, or a line that is no such row.
    """
    rows, digest = _read_csv(path, _STS_HINT)
    if rows and len(rows[0][1]) >= 3 and _number(rows[0][1][2]) is None:
        rows = rows[1:]
    scores: list[float] = []
    for line, row in rows:
        score = _number(row[2]) if len(row) >= 3 else None
        if score is None:
            raise ArtifactError(f"{path}, line {line} is no pair of sentences with a score", _STS_HINT)
        scores.append(score)
    if len(rows) < 2:
        raise ArtifactError(f"{path} has {len(rows)} pairs of sentences, too few to rank", _STS_HINT)
    first, second = tuple(row[0] for _, row in rows), tuple(row[1] for _, row in rows)
    return SentencePairs(path.name, digest, first, second, np.asarray(scores, np.float64))


def read_labelled(path: Path, config: Mapping[str, Any]) -> LabelledTexts:
    """The rows `text, label` or `text, text, label` of a .csv file; labels are numbers, or names in `id2label` of the config.

    A first line with a column called `label` tells which column is the label. Without one, all rows have three columns where they
    are pairs, and something in the second that is no label.

    Raises:
        ArtifactError: no such file, or a line that is no such row.
        UsageError: a label that the model does not know.
    """
    rows, digest = _read_csv(path, _LABEL_HINT)
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    by_name = _labels_by_name(config)
    if "label" in names[1:3]:
        at, rows = names.index("label", 1), rows[1:]
    else:
        second = [row[1].strip() for _, row in rows if len(row) == 3]
        pairs = len(second) == len(rows) and not all(label in by_name or label.isdecimal() for label in second)
        at = 2 if pairs else 1
    for line, row in rows:
        if len(row) <= at:
            raise ArtifactError(f"{path}, line {line} is no text with a label", _LABEL_HINT)
    if not rows:
        raise ArtifactError(f"{path} has no labelled text", _LABEL_HINT)
    numbers = _numbered([(line, row[at].strip()) for line, row in rows], by_name, path)
    texts = tuple(row[0] if at == 1 else (row[0], row[1]) for _, row in rows)
    return LabelledTexts(path.name, digest, texts, numbers)


def _labels_by_name(config: Mapping[str, Any]) -> dict[str, int]:
    named = config.get("id2label")
    return {str(name): int(number) for number, name in named.items()} if isinstance(named, dict) else {}


def _numbered(labels: Sequence[tuple[int, str]], by_name: Mapping[str, int], path: Path) -> Ids:
    found = []
    for line, label in labels:
        if label not in by_name and not label.isdecimal():
            raise UsageError(
                f"{path}, line {line} has the label '{label}', which the model does not know",
                f"its labels are {', '.join(by_name) or 'numbers from 0'}",
            )
        found.append(by_name[label] if label in by_name else int(label))
    return np.asarray(found, np.int64)


def ranks(values: npt.NDArray[Any]) -> Doubles:
    """Ranks from 1, float64; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: Doubles = np.cumsum(counts) - (counts - 1) / 2
    return shared[inverse]


def pearson(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Correlation of two vectors; 0 where one of them is constant."""
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def spearman(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Correlation of the ranks of two vectors (Spearman 1904)."""
    return pearson(ranks(first), ranks(second))


def macro_f1(wanted: Ids, got: Ids) -> float:
    """Mean over the labels that occur of the harmonic mean of precision and recall."""
    scores = []
    for label in np.union1d(wanted, got):
        hits = int(((wanted == label) & (got == label)).sum())
        scores.append(2 * hits / (int((wanted == label).sum()) + int((got == label).sum())))
    return float(np.mean(scores))


def _read_csv(path: Path, hint: str) -> tuple[list[tuple[int, list[str]]], str]:
    """(number of its line, cells) of each row that is not empty, and the hash of the file."""
    if not path.is_file():
        raise ArtifactError(f"there is no data file {path}", f"give a .csv file; {hint}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is not UTF-8 text", f"give a .csv file; {hint}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ArtifactError(f"{path}, line {reader.line_num} is not valid CSV: {error}", hint) from None
    return rows, hashlib.sha256(content).hexdigest()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
