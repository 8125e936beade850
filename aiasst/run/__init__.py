"""Answering a file of prompts with a model folder: rows in, answers out, resumable. Composes the parts; computes nothing.

    prompts.py   the prompts file: lines to rows
    job.py       what a job is, so that answers are never continued as another's
    answers.py   the answers file: appended, recovered, locked
    batch.py     rows through the engine, several at once
    prefixes.py  what prompts begin with in common, kept from job to job
    encoding.py  the same for a model that embeds or classifies: texts in (texts.py), vectors or labels out

>>> from aiasst.run import load_text
>>> from aiasst.engine.text import Sampling, TextRequest
>>> engine = load_text("story-int4")
>>> request = TextRequest("1", "Once upon a time", None, Sampling(max_tokens=40))
>>> print("".join(event.text for event in engine.generate(request)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from aiasst.artifacts.device import DeviceConfig, load_device_config
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.engine.defaults import default_sampling
from aiasst.engine.encode import Encoder
from aiasst.engine.requests import Sampling
from aiasst.engine.text import TextEngine
from aiasst.errors import ArtifactError
from aiasst.profile import comparison, obey, quick_config
from aiasst.progress import Progress, ProgressFn, silent
from aiasst.run.answers import Answer, AnswersFile, AnswersStream, Done, open_answers
from aiasst.run.batch import Meter, answer_rows
from aiasst.run.encoding import EncodeSummary, encode
from aiasst.run.job import Job
from aiasst.run.prefixes import folder_for, kept
from aiasst.run.prompts import BadRow, Prompts, Row, RowReader, open_prompts

__all__ = ["EncodeSummary", "Encoder", "Summary", "encode_file", "load", "load_text", "run"]

DECODER_TASK = "text-generation"


@dataclass(frozen=True)
class Summary:
    """What came of a job."""

    rows: int
    """Of the prompts file."""
    earlier: int
    """Answered before this time."""
    errors: int
    """Rows that have an error instead of an answer, earlier ones too."""
    seed: int
    prompt_tokens: int
    """This and what follows: of this time."""
    cached_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    drafted_tokens: int
    accepted_tokens: int
    """Both as in `engine.text.Usage`."""
    paced_seconds: float = 0.0
    """Pauses that kept the device config's limits of temperature and power; `seconds` has them in it."""


def load(
    folder: str | Path | ModelFolder,
    config: str | Path | DeviceConfig | None = None,
    *,
    speculate: bool = True,
) -> TextEngine | Encoder:
    """Open a model folder as a device config says; without one this machine is asked briefly.

    >>> engine = load("story-int4", "device.json")
    >>> vectors = load("minilm-w8a8").encode(["A cat sleeps.", "Interest rates rose."])

    A model that generates text comes as a TextEngine, one that embeds or classifies as an Encoder. `speculate` as in `load_text`.

    Raises:
        ArtifactError: the folder or the config is missing or wrong. Another machine's config is not obeyed: see `obey`.
        ResourceError: the execution provider does not load, or the model does not fit into memory.
    """
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.open(folder)
    if model.manifest.task == DECODER_TASK or model.manifest.shape is None:
        return load_text(model, config, speculate=speculate)
    return _encoder(model, config)


def load_text(
    folder: str | Path | ModelFolder,
    config: str | Path | DeviceConfig | None = None,
    *,
    speculate: bool = True,
) -> TextEngine:
    """Open a model folder to generate text; see `load`.

    With `speculate` an answer that is alone repeats what the text has said before several tokens at a time, where that is
    faster. When it is depends on measured times, and in the last bits of its logits a model answers a little differently
    then: without it, a seed gives the same text in every run.
    """
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.open(folder)
    if config is None:
        return TextEngine(model, quick_config(model), speculate=speculate)
    device = config if isinstance(config, DeviceConfig) else load_device_config(Path(config))
    found = obey(device, model)
    engine = TextEngine(model, found.config, speculate=speculate)
    engine.remarks, engine.compare = found.remarks, comparison(model, found.config)
    return engine


def _encoder(model: ModelFolder, config: str | Path | DeviceConfig | None, top: int | None = None) -> Encoder:
    if config is None:
        return Encoder(model, quick_config(model), top=top)
    device = config if isinstance(config, DeviceConfig) else load_device_config(Path(config))
    found = obey(device, model)
    encoder = Encoder(model, found.config, top=top)
    encoder.remarks = found.remarks
    return encoder


def encode_file(
    folder: str | Path | ModelFolder,
    texts: Path | BinaryIO,
    answers: Path | Callable[[str], None],
    *,
    config: str | Path | DeviceConfig | None = None,
    top: int | None = None,
    restart: bool = False,
    progress: ProgressFn = silent,
    note: Callable[[str], None] = lambda text: None,
) -> EncodeSummary:
    """Encode every row of a file of texts, with a model that embeds or classifies; see `encoding.encode`.

    `note` is told what of a device config is obeyed.

    >>> summary = encode_file("minilm-w8a8", Path("texts.jsonl"), Path("vectors.npy"))
    """
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.open(folder)

    def open_encoder() -> Encoder:
        encoder = _encoder(model, config, top)
        for remark in encoder.remarks:
            note(remark)
        return encoder

    return encode(model, texts, answers, open_encoder=open_encoder, top=top, restart=restart, progress=progress)


def run(
    folder: str | Path | ModelFolder,
    prompts: Path | BinaryIO,
    answers: Path | Callable[[str], None],
    *,
    config: str | Path | DeviceConfig | None = None,
    sampling: Sampling | None = None,
    stop: tuple[str, ...] = (),
    restart: bool = False,
    prefix_cache: Path | None = None,
    speculate: bool | None = None,
    progress: ProgressFn = silent,
    note: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Answer every row of a prompts file.

    >>> summary = run("story-int4", Path("prompts.jsonl"), Path("answers.jsonl"))

    Args:
        folder: the model.
        prompts: a file of rows (see `prompts.py`), or a stream that is read to its end first.
        answers: a file, which is continued where it has answers of this job; or what is called with every line.
        config: as in `load`.
        sampling: what holds where a row says nothing; None: what the checkpoint recommends. Without a seed one is drawn.
        stop: strings that end an answer, for rows that name none.
        restart: throw earlier answers of the file away.
        prefix_cache: a folder that keeps, from job to job, what prompts begin with in common; made where it is missing.
        speculate: as in `load`; None: where no seed is given.
        progress: told of rows and tokens a second.
        note: told what of a device config is obeyed, why something kept could not be used, or was not kept.

    Raises:
        ArtifactError: the folder, a file or the config is missing or wrong, or the answers belong to another job.
        ResourceError: memory or disk is not enough; the job can be continued.
    """
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.open(folder)
    wanted = sampling or default_sampling(model.path)
    keep_in = None if prefix_cache is None else folder_for(prefix_cache)
    with open_prompts(prompts) as source:
        job = Job.of(model, prompts_sha256=source.sha256, rows=source.rows, sampling=wanted, stop=stop)
        with _opened(prompts, answers, source, job, seed_given=wanted.seed is not None, restart=restart) as sink:
            meter, paced = Meter(source.rows, sink.done.rows, progress), 0.0
            if sink.done.rows < source.rows:  # else the model need not be loaded
                progress(Progress("load", 0, 1, model.path.name))
                engine = load_text(model, config, speculate=wanted.seed is None if speculate is None else speculate)
                progress(Progress("load", 1, 1, engine.forms or model.path.name))
                for remark in engine.remarks:
                    note(remark)
                meter = Meter(source.rows, sink.done.rows, progress)
                rows = RowReader(replace(wanted, seed=None), stop, sink.job.seed)
                with kept(engine, keep_in, model.path.resolve().name, note):
                    write = _comparing(sink.append, engine, note)
                    answer_rows(engine, _left(source, rows, sink.done), write, meter)
                paced = engine.engine.stats.paced_seconds
            return _summary(sink, meter, paced)


def _comparing(
    write: Callable[[Answer], None], engine: TextEngine, note: Callable[[str], None]
) -> Callable[[Answer], None]:
    """`write`, and after it a look at whether steps take what the device config lets expect."""

    def written(answer: Answer) -> None:
        write(answer)
        if said := engine.drifted():
            note(said)

    return written


def _opened(
    prompts: Path | BinaryIO,
    answers: Path | Callable[[str], None],
    source: Prompts,
    job: Job,
    *,
    seed_given: bool,
    restart: bool,
) -> AbstractContextManager[AnswersFile | AnswersStream]:
    if not isinstance(answers, Path):
        return nullcontext(AnswersStream(job, Done(bytearray(source.lines + 1)), answers))
    if isinstance(prompts, Path) and answers.exists() and answers.samefile(prompts):
        raise ArtifactError(f"{answers} is the prompts file", "name another file for the answers with -o")
    return open_answers(answers, job, lines=source.lines, seed_given=seed_given, restart=restart)


def _left(prompts: Prompts, reader: RowReader, done: Done) -> Iterator[Row | BadRow]:
    """The rows that have no answer yet."""
    for number, text in prompts:
        # Answered rows are read too: their ids count when a later row has the same.
        row = reader.read(number, text)
        if not done.lines[number]:
            yield row


def _summary(sink: AnswersFile | AnswersStream, meter: Meter, paced_seconds: float) -> Summary:
    return Summary(
        rows=meter.total,
        earlier=meter.earlier,
        errors=sink.done.errors,
        seed=sink.job.seed,
        prompt_tokens=meter.prompt_tokens,
        cached_tokens=meter.cached_tokens,
        completion_tokens=meter.completion_tokens,
        seconds=meter.seconds if meter.rows else 0.0,
        tokens_per_second=meter.tokens_per_second if meter.rows else 0.0,
        drafted_tokens=meter.drafted_tokens,
        accepted_tokens=meter.accepted_tokens,
        paced_seconds=round(paced_seconds, 3),
    )
