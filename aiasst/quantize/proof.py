"""The proof: a quantized folder is measured against its original before it appears, and refused where a budget is not kept.

A decoder's original answers layer by layer, so that proving takes no more memory than calibrating does. Knows no format.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from aiasst.artifacts.card import AccuracyCard, write_card
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import BudgetRefused
from aiasst.evaluate.decoders import prepare_windows
from aiasst.evaluate.fitness import why_unmeasurable
from aiasst.evaluate.measure import DECODER_TASK, measure_card
from aiasst.progress import ProgressFn, silent
from aiasst.quantize.calibrate.layers import LayeredModel, cut_layers
from aiasst.quantize.calibrate.reference import LayeredReference
from aiasst.quantize.preparation import Prepared

# A large model takes a while to read a text, and says the same with fewer tokens: its predictions are less noisy.
_LARGE_PARAMETERS, _TOKENS_OF_LARGE = 300_000_000, 4096


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
                    f"the accuracy of the result cannot be measured: {obstacle}", "leave out --max-kld and --min-top1"
                )
            return
        card = self._measured(folder, progress)
        if budget is not None:
            budget.check(
                kl_mean=card.kl_mean,
                top1_agreement=card.top1_agreement,
                nbytes=card.bytes,
                bits_per_weight=card.bits_per_weight,
            )
        write_card(folder, card)

    def _measured(self, folder: ModelFolder, progress: ProgressFn) -> AccuracyCard:
        source = ModelFolder.open(self.prepared.source.folder)
        name, original = self.prepared.destination.name, self.prepared.source.name
        if self.original is None:
            return measure_card(folder, source, name=name, original=original, progress=progress)
        large = self.prepared.plan.parameters > _LARGE_PARAMETERS
        windows = prepare_windows(folder, tokens=_TOKENS_OF_LARGE if large else None)
        with tempfile.TemporaryDirectory(prefix=".aiasst-", dir=folder.path.parent) as work:
            reference = LayeredReference.prepare(self.original, windows.ids, Path(work), progress=progress)
            return measure_card(
                folder,
                reference,
                text=windows,
                name=name,
                original=original,
                bytes_before=source.weight_bytes,
                progress=progress,
            )
