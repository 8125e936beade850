"""The proof: a quantized folder is measured against its original before it appears, and refused where a budget is not kept.

A decoder's original answers layer by layer, and before the new model is opened: its answers wait on disk, so that proving takes no
more memory than calibrating does. Knows no format.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiasst.artifacts.card import AccuracyCard, FormScores, write_card
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import BudgetRefused
from aiasst.evaluate.decoders import Windows, prepare_windows
from aiasst.evaluate.fitness import why_unmeasurable
from aiasst.evaluate.measure import DECODER_TASK, measure_card
from aiasst.evaluate.perplexity import Floats, Ids, Scorer
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.quantize.calibrate.activations import ActivationStore
from aiasst.quantize.calibrate.estimate import answers_wait, proof_tokens
from aiasst.quantize.calibrate.layers import LayeredModel, cut_layers
from aiasst.quantize.calibrate.reference import LayeredReference
from aiasst.quantize.preparation import Prepared

STAGE = "answers"
_LOGITS, _TARGETS = "logits", "targets"


@dataclass(frozen=True)
class Proof:
    """What is needed to measure a model that replaces another one."""

    prepared: Prepared
    original: LayeredModel | None
    """The float decoder in layers, cut before its graph is rewritten; None for an encoder or a foreign graph."""

    @classmethod
    def begin(cls, prepared: Prepared) -> Proof:
        """Before the graph is rewritten."""
        if prepared.source.table is None or prepared.source.task != DECODER_TASK:
            return cls(prepared, None)
        if prepared.task is not None:
            return cls(prepared, prepared.task.layered)
        return cls(prepared, cut_layers(prepared.source, prepared.inventory))

    def write(self, staging: Path, progress: ProgressFn = silent) -> None:
        """Measure the folder `staging`, hold it against the budget, and put the card into it.

        A folder that cannot be measured (a foreign graph, no tokenizer) has no card, and keeps no budget of accuracy.

        Raises:
            BudgetRefused: a limit is not kept.
            ArtifactError: the model's answers are no numbers.
        """
        folder = ModelFolder.open(staging)
        budget = self.prepared.budget
        obstacle = why_unmeasurable(folder)
        if obstacle:
            if budget is not None and budget.limits_loss:
                raise BudgetRefused(
                    f"the accuracy of the result cannot be measured: {obstacle}", "leave out the limit of accuracy"
                )
            return
        card = self._measured(folder, progress)
        if budget is not None:
            worst_kl, worst_top1 = _worst(card)
            budget.check(
                kl_mean=worst_kl,
                top1_agreement=worst_top1,
                nbytes=card.bytes,
                bits_per_weight=card.bits_per_weight,
                similarity=card.similarity_mean if card.similarity_mean is not None else card.score_rank_correlation,
            )
        write_card(folder, card)

    def _measured(self, folder: ModelFolder, progress: ProgressFn) -> AccuracyCard:
        source = ModelFolder.open(self.prepared.source.folder)
        name, original = self.prepared.destination.name, self.prepared.source.name
        shape = folder.manifest.shape
        if self.original is None or shape is None:
            return measure_card(folder, source, name=name, original=original, progress=progress)
        windows = prepare_windows(folder, tokens=proof_tokens(self.prepared.plan.parameters))
        with tempfile.TemporaryDirectory(prefix=".aiasst-", dir=folder.path.parent) as work:
            return measure_card(
                folder,
                _answers(self.original, windows, shape.vocab_size, Path(work), progress),
                text=windows,
                name=name,
                original=original,
                bytes_before=source.weight_bytes,
                work=Path(work),
                progress=progress,
            )


def _worst(card: AccuracyCard) -> tuple[float | None, float | None]:
    """Mean KL divergence and top-1 agreement of whichever form, or both together, is furthest from the original."""
    forms: list[AccuracyCard | FormScores] = [card]
    if card.pair is not None:
        forms += [card.pair, card.pair.twin]
    kl = [form.kl_mean for form in forms if form.kl_mean is not None]
    top1 = [form.top1_agreement for form in forms if form.top1_agreement is not None]
    return max(kl, default=None), min(top1, default=None)


def _answers(original: LayeredModel, windows: Windows, vocabulary: int, work: Path, progress: ProgressFn) -> Scorer:
    """What `original` of a `vocabulary` predicts on `windows`, with what is needed for it in the folder `work`."""
    reference = LayeredReference.prepare(original, windows.ids, work / "layers", progress=progress)
    if not answers_wait(windows.ids.size, vocabulary):
        return reference
    answers = StoredAnswers.of(reference, windows.ids, ActivationStore(work / "answers"), progress)
    reference.remove()
    return answers


class StoredAnswers:
    """Logits of a model that is not in memory any more; a `Scorer` for the windows that it has seen."""

    def __init__(self, places: Mapping[bytes, range], store: ActivationStore) -> None:
        """`places` tells of each window's bytes where its pieces lie in `store`."""
        self._places = places
        self._store = store

    @classmethod
    def of(cls, scorer: Scorer, windows: Ids, store: ActivationStore, progress: ProgressFn = silent) -> StoredAnswers:
        """Ask `scorer` for all `windows` int64 [count, T], and keep what it says. Raises OSError: the disk is full."""
        places: dict[bytes, range] = {}
        pieces = 0
        for number, window in enumerate(windows):
            progress(Progress(STAGE, number, len(windows)))
            first = pieces
            for logits, targets in scorer.score(window):
                store.write(pieces, {_LOGITS: logits, _TARGETS: targets})
                pieces += 1
            places[window.tobytes()] = range(first, pieces)
        progress(Progress(STAGE, len(windows), len(windows)))
        return cls(places, store)

    def score(self, window: Ids) -> Iterator[tuple[Floats, Ids]]:
        """See `evaluate.perplexity.Scorer`. Raises ValueError: `window` is none of those that were seen."""
        pieces = self._places.get(window.tobytes())
        if pieces is None:
            raise ValueError("this window was not seen")
        for piece in pieces:
            kept = self._store.read(piece)
            yield kept[_LOGITS], kept[_TARGETS]
