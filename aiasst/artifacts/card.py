"""The accuracy card of a model folder: card.json, and CARD.md for people. Knows what the numbers mean, not how they are measured.

Both belong to the folder: the manifest records their size and hash. docs/card.md explains every key.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from aiasst.artifacts.document import Document, read_json, write_text_atomically
from aiasst.artifacts.model_folder import FileRecord, Manifest, ModelFolder, disk_errors, sha256_of, write_manifest
from aiasst.errors import ArtifactError

CARD_NAME = "card.json"
PAGE_NAME = "CARD.md"
CARD_VERSION: Literal[1] = 1

_REMEDY = "measure it again: aiasst eval DIR --against ORIGINAL --write"

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class MeasuredText(Document):
    """What a model was measured on."""

    name: str
    """File name without its folder."""
    shipped: bool
    """Whether it is the held-out text that comes with the program."""
    tokens: int
    """That were read."""
    passages: int
    """Windows of a decoder, sentences of an encoder."""
    window: int | None
    """Tokens of a window, of which the second half is scored; null for an encoder."""
    scored: int | None
    """Tokens whose prediction counts; null for an encoder."""
    sha256: str
    """Over the token ids, little-endian int64, in order."""


class TaskScores(Document):
    """How well a model does what it is for, on labelled data."""

    task: str
    """sts or classification."""
    data: str
    """File name without its folder."""
    rows: int
    sha256: str
    """Of the file."""
    before: dict[str, Number] | None
    """Of the original: spearman and pearson (sts), accuracy and f1 (classification); null where none was given."""
    after: dict[str, Number]
    """Of the model."""


class FormScores(Document):
    """What a decoder kept of its accuracy when its second form does some of the work. Names as in the card."""

    perplexity_after: Number
    kl_mean: Number | None = None
    kl_p999: Number | None = None
    kl_max: Number | None = None
    top1_agreement: Share | None = None
    accuracy_after: Share
    retained_percent: Number | None = None


class PairScores(FormScores):
    """Of both forms together as they are used: the second reads the prompt, the first answers."""

    twin: FormScores
    """Of the second form alone: many sequences at once, which it decodes as well."""
    bytes: int
    """Graphs and weights of both on disk."""
    bits_per_weight: Number
    """Of both on disk, everything included."""


class AccuracyCard(Document):
    """`card.json`. What does not apply is null: `…_before` without an original, tokens for an encoder, similarity for a decoder."""

    schema_version: Literal[1] = CARD_VERSION
    aiasst_version: str
    model: str
    """Name of the folder that was measured."""
    original: str | None
    """Name of the model that it was compared with."""
    model_task: str
    """text-generation, feature-extraction, … as in the manifest."""

    perplexity_before: Number | None = None
    perplexity_after: Number | None = None
    kl_mean: Number | None = None
    """Nats a token, D(original || model)."""
    kl_p999: Number | None = None
    kl_max: Number | None = None
    top1_agreement: Share | None = None
    accuracy_before: Share | None = None
    """Of the next token: how often the likeliest one is the one that came."""
    accuracy_after: Share | None = None
    retained_percent: Number | None = None
    """100 x accuracy_after / accuracy_before."""

    similarity_mean: Number | None = None
    """Cosine of a text's vector with the original's."""
    similarity_min: Number | None = None
    score_rank_correlation: Number | None = None
    """Of a cross-encoder's scores with the original's."""
    score_change: Number | None = None
    """Root mean square of what its scores moved, as a share of the original scores' own spread."""
    scores: TaskScores | None = None

    pair: PairScores | None = None
    """Of the folder's two forms together; null where there is one. All else on the card is the first form's."""

    bytes: int
    """Graph and weights on disk."""
    bytes_before: int | None = None
    bits_per_weight: Number
    """Everything included: scales, zero points, padding, embeddings, head, and what stays in floating point."""

    text: MeasuredText | None
    """Null where only a task was scored."""
    provider: str
    """Execution provider that ran both."""
    threads: int
    """0: ONNX Runtime chose."""
    onnxruntime_version: str
    cpu: str

    @property
    def command(self) -> str:
        """The command that measures this again."""
        parts = ["aiasst", "eval", self.model]
        if self.original is not None:
            parts += ["--against", self.original]
        # Without a text of its own, an encoder is compared on all texts of its task.
        if self.text is not None and (self.scores is None or self.text.name != self.scores.data):
            parts += [] if self.text.shipped else ["--text", self.text.name]
            parts += ["--tokens", str(self.text.tokens)]
        if self.scores is not None:
            parts += ["--task", self.scores.task, "--data", self.scores.data]
        return shlex.join(parts)

    def to_page(self) -> str:
        """CARD.md."""
        rows = "\n".join(f"| {name} | {value} | {meaning} |" for name, value, meaning in self.measures())
        compared = f", compared with `{self.original}`" if self.original else ""
        return (
            f"# Accuracy of {self.model}\n\n"
            f"What this model ({self.model_task}) kept of its accuracy, and at what size{compared}. {self._how()}\n\n"
            f"| measure | value | what it means |\n|---|---|---|\n{rows}\n\n"
            f"Measure it again:\n\n    {self.command}\n\n"
            f"The same numbers for programs, and what identifies the text: `{CARD_NAME}`.\n"
        )

    def measures(self) -> Iterator[tuple[str, str, str]]:
        """(name, value, one line on what it means) of everything that was measured."""
        yield from self._decoder_measures()
        yield from self._encoder_measures()
        before = f"{self.bytes_before:,} → " if self.bytes_before is not None else ""
        yield "size", f"{before}{self.bytes:,} bytes", "graph and weights on disk"
        yield "bits per weight", f"{self.bits_per_weight:.2f}", "scales, zero points, embeddings and head included"
        if self.pair is not None:
            yield from _pair_measures(self.pair)

    def _decoder_measures(self) -> Iterator[tuple[str, str, str]]:
        if self.perplexity_after is not None:
            meaning = "the model hesitates as if between so many tokens"
            yield "perplexity", change(self.perplexity_before, self.perplexity_after, "{:.3f}"), meaning
        if self.kl_mean is not None and self.kl_p999 is not None:
            yield "KL divergence, mean", f"{self.kl_mean:.4f} nats", "how far its predictions moved; 0: not at all"
            meaning = "how far they moved at the worst token in a thousand"
            yield "KL divergence, 99.9th percentile", f"{self.kl_p999:.4f} nats", meaning
        if self.top1_agreement is not None:
            meaning = "how often both find the same answer likeliest"
            yield "top-1 agreement", f"{self.top1_agreement:.2%}", meaning
        if self.accuracy_after is not None:
            accuracy = change(self.accuracy_before, self.accuracy_after, "{:.2%}", relative=False)
            yield "next-token accuracy", accuracy, "how often the likeliest token is the one that came"
        if self.retained_percent is not None:
            yield (
                "retained accuracy",
                f"{self.retained_percent:.2f}%",
                "next-token accuracy as a share of the original's",
            )

    def _encoder_measures(self) -> Iterator[tuple[str, str, str]]:
        if self.similarity_mean is not None and self.similarity_min is not None:
            meaning = "cosine of a text's vector with the original's; 1: the same"
            yield "similarity, mean", f"{self.similarity_mean:.5f}", meaning
            yield "similarity, lowest", f"{self.similarity_min:.5f}", "the text whose vector moved most"
        if self.score_rank_correlation is not None and self.score_change is not None:
            meaning = "rank correlation of a pair's score with the original's; 1: the same order"
            yield "order of scores", f"{self.score_rank_correlation:.5f}", meaning
            yield "change of scores", f"{self.score_change:.2%}", "root mean square, of the original scores' spread"
        if self.scores is not None:
            for name, value in self.scores.after.items():
                before = None if self.scores.before is None else self.scores.before[name]
                meaning = f"{_SCORE_MEANINGS[name]} ({self.scores.rows} rows of {self.scores.data})"
                yield name, change(before, value, "{:.4f}", relative=False), meaning

    def _how(self) -> str:
        cpu = self.cpu or "an unnamed CPU"
        where = f"through the execution provider `{self.provider}` of ONNX Runtime {self.onnxruntime_version} on {cpu}"
        if self.text is None:
            return f"Measured {where}."
        return f"Measured on {text_in_words(self.text)}, {where}."


def _pair_measures(pair: PairScores) -> Iterator[tuple[str, str, str]]:
    """Rows of both forms together; after each value, in brackets, that of the second form alone."""

    def both(form: str, read: float | None, alone: float | None) -> str:
        return "" if read is None or alone is None else f"{form.format(read)} ({form.format(alone)})"

    alone = pair.twin
    rows = [
        ("perplexity", both("{:.3f}", pair.perplexity_after, alone.perplexity_after)),
        ("KL divergence, mean", both("{:.4f} nats", pair.kl_mean, alone.kl_mean)),
        ("KL divergence, 99.9th percentile", both("{:.4f} nats", pair.kl_p999, alone.kl_p999)),
        ("top-1 agreement", both("{:.2%}", pair.top1_agreement, alone.top1_agreement)),
    ]
    meaning = "the second form reads the prompt (in brackets: and answers, as with many at once)"
    yield from ((f"both forms: {name}", value, meaning) for name, value in rows if value)
    yield "both forms: size", f"{pair.bytes:,} bytes", "on disk; one form alone is enough to run"
    yield "both forms: bits per weight", f"{pair.bits_per_weight:.2f}", "what both have alike counts once"


_SCORE_MEANINGS = {
    "spearman": "rank correlation of the model's scores with people's",
    "pearson": "correlation of the model's scores with people's",
    "accuracy": "share of rows with the right label",
    "f1": "F1 of the labels, each counting alike",
}


def change(before: float | None, after: float, form: str, *, relative: bool = True) -> str:
    """`before → after`, with the change in percent where `relative`; `after` alone where there is no before."""
    if before is None:
        return form.format(after)
    percent = f" ({after / before - 1:+.2%})" if relative and before else ""
    return f"{form.format(before)} → {form.format(after)}{percent}"


def text_in_words(text: MeasuredText) -> str:
    """Name and amount, for a sentence or a table."""
    name = "the held-out text that comes with aiasst" if text.shipped else text.name
    if text.window is None:
        return f"{text.passages:,} texts of {name} ({text.tokens:,} tokens)"
    return (
        f"{text.tokens:,} tokens of {name}, in {text.passages} windows of {text.window}, the second half of each scored"
    )


def bits_per_weight(manifest: Manifest) -> float:
    """Bits of all parameters, by the weight table; rotary tables are no weights, and shared ones count once."""
    weights = [weight for weight in manifest.weights.values() if weight.role != "rotary"]
    count = sum(math.prod(weight.shape) for weight in weights if weight.shared_with is None)
    return round(8 * sum(weight.bytes for weight in weights) / max(1, count), 4)


def bits_of_both(manifest: Manifest) -> float:
    """Bits of all parameters in both forms of a folder that has two, as `bits_per_weight`: what is shared counts once."""
    assert manifest.twin is not None
    second = {
        f"twin/{name}": row.model_copy(update={"shared_with": "first"}) for name, row in manifest.twin.weights.items()
    }
    return bits_per_weight(manifest.model_copy(update={"weights": {**manifest.weights, **second}}))


def read_card(folder: ModelFolder) -> AccuracyCard | None:
    """The card of a model folder, None where it has none.

    Raises:
        ArtifactError: it is broken, or of another version.
    """
    if CARD_NAME not in folder.manifest.files:
        return None
    path = folder.path / CARD_NAME
    data = read_json(path, "accuracy card", _REMEDY)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != CARD_VERSION:
        raise ArtifactError(f"{path} has schema version {version}, this program reads {CARD_VERSION}", _REMEDY)
    return AccuracyCard.parse(data, str(path))


def write_card(folder: ModelFolder, card: AccuracyCard) -> ModelFolder:
    """Write card.json and CARD.md into the folder, replacing earlier ones, and record them in its manifest.

    The manifest forgets the old ones first, so that whenever this is cut short the folder can be opened.

    Raises:
        ResourceError: the disk is full, or the folder may not be written to.
    """
    texts = {CARD_NAME: card.to_json(), PAGE_NAME: card.to_page()}
    others = {name: record for name, record in folder.manifest.files.items() if name not in texts}
    with disk_errors(folder.path, "free some space, or copy the folder to a place that can be written to"):
        if len(others) < len(folder.manifest.files):
            write_manifest(folder.path, folder.manifest.model_copy(update={"files": others}))
        for name, text in texts.items():
            write_text_atomically(folder.path / name, text)
        paths = {name: folder.path / name for name in texts}
        records = {name: FileRecord(bytes=p.stat().st_size, sha256=sha256_of(p)) for name, p in paths.items()}
        manifest = folder.manifest.model_copy(update={"files": dict(sorted((others | records).items()))})
        write_manifest(folder.path, manifest)
    return replace(folder, manifest=manifest)
