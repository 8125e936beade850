"""The accuracy card of a model: measured through the execution provider that will run it, alone or beside its original.

    decoders.py      a text is predicted              perplexity.py
    encoders.py      texts become vectors             similarity.py · scoring.py
    fitness.py       what is refused beforehand

Puts the card together; computes nothing and writes no file.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from aiasst.artifacts.card import AccuracyCard, bits_per_weight
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import UsageError
from aiasst.evaluate.decoders import Windows, measure_decoder, prepare_windows
from aiasst.evaluate.encoders import measure_encoder
from aiasst.evaluate.fitness import refuse_other_model, refuse_unmeasurable
from aiasst.evaluate.perplexity import Scorer
from aiasst.evaluate.scoring import TaskData
from aiasst.progress import ProgressFn, silent
from aiasst.runtime.session import SessionSettings
from aiasst.version import __version__

DECODER_TASK = "text-generation"


def measure_card(
    folder: ModelFolder,
    against: ModelFolder | Scorer | None = None,
    *,
    text: Path | Windows | None = None,
    tokens: int | None = None,
    task: TaskData | None = None,
    settings: SessionSettings | None = None,
    name: str | None = None,
    original: str | None = None,
    bytes_before: int | None = None,
    work: Path | None = None,
    progress: ProgressFn = silent,
) -> AccuracyCard:
    """Measure a model folder.

    Args:
        folder: the model.
        against: its original, as a folder or (for a decoder) whatever predicts as the original does; None: the model alone.
        text: a text file (see texts.py), or windows that were prepared; None: the held-out text that comes with the program.
        tokens: most tokens of the text that are read; None: DEFAULT_TOKENS.
        task: labelled data for an encoder.
        settings: what the sessions run on; None: the CPU.
        name: of the model on the card; None: the folder's.
        original: name of the original on the card; None: its folder's.
        bytes_before: graph and weights of the original, where `against` is no folder.
        work: where caches may wait while two forms are measured; None: where the system has temporary files.
        progress: told of every window or text.

    Raises:
        ArtifactError: a folder cannot be measured, or a file is no text.
        UsageError: the text is too short, the two have other vocabularies, or the model is of the wrong kind for `task`.
        ResourceError: the execution provider does not load, or memory is short.
    """
    settings = settings or SessionSettings()
    refuse_unmeasurable(folder)
    if isinstance(against, ModelFolder):
        refuse_unmeasurable(against)
        refuse_other_model(folder, against)
        original, bytes_before = original or _name(against), against.weight_bytes
    blank = AccuracyCard(
        aiasst_version=__version__,
        model=name or _name(folder),
        original=original,
        model_task=folder.manifest.task,
        bytes=folder.weight_bytes,
        bytes_before=bytes_before,
        bits_per_weight=bits_per_weight(folder.manifest),
        text=None,
        provider=settings.provider,
        threads=settings.threads,
        onnxruntime_version=version("onnxruntime"),
        cpu=cpu_name(),
    )
    if folder.manifest.task == DECODER_TASK:
        if task is not None:
            raise UsageError(f"{folder.path} generates text, and --task is for encoders", "leave --task out")
        windows = text if isinstance(text, Windows) else prepare_windows(folder, text, tokens)
        found = measure_decoder(folder, against, windows, settings, progress, work)
    else:
        if (against is not None and not isinstance(against, ModelFolder)) or isinstance(text, Windows):
            raise ValueError(f"{folder.path} is no decoder, so it takes a folder and a text file")
        found = measure_encoder(
            folder, against, text=text, tokens=tokens, task=task, settings=settings, progress=progress
        )
    return blank.model_copy(update=found)


def _name(folder: ModelFolder) -> str:
    return folder.path.resolve().name


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's own name where the system tells it, else its architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
