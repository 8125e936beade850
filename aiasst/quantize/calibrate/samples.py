"""Token sequences for calibration: from token ids, from texts, or from our own texts. Knows no model and no algorithm.

    .npz     token ids, taken as they are
    .jsonl   a passage a line (tokenizer/passages.py)
    .txt     one long text, of which windows are taken
    none     what comes with the program (calibration/*.jsonl, held-out.jsonl left out)

Passages are shuffled, joined with the token that ends a text where the tokenizer has one, and cut into sequences of one
length, each with the tokens around it that the tokenizer puts around every text. The seed decides which passages and windows.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.shipped import HELD_OUT_NAME, data_folder
from aiasst.errors import ArtifactError, PromptError
from aiasst.tokenizer import Tokenizer
from aiasst.tokenizer.passages import Passage, read_passages

Ids = npt.NDArray[np.int64]

SEQUENCES = 64
LENGTH = 512
OUR_NAME = "calibration"
"""What our own texts are called in manifests."""

_IDS_HINT = "write one with numpy: np.savez('sample_data.npz', input_ids=ids), ids being int64 [sequences, length]"
_TEXT_HINT = 'give a .txt in UTF-8, a .jsonl with {"text": "…"} in each line, or token ids in an .npz'
# More than any tokenizer needs for a token of ordinary text: what is read of a long text for each token that is wanted.
_BYTES_A_TOKEN = 8
_READ = 1 << 20


@dataclass(frozen=True)
class Samples:
    """Sequences of token ids of one length."""

    name: str
    ids: Ids
    """[sequences, length]."""
    seed: int = 0
    """Of the choice of passages."""
    sha256: str = ""
    """Of the ids: the same ids, in the same order, have the same."""


def load_samples(
    path: Path | str | None,
    tokenizer_folder: Path | None = None,
    *,
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
    context_length: int | None = None,
    vocab_size: int | None = None,
) -> Samples:
    """Read calibration text or ids.

    Args:
        path: .npz, .jsonl or .txt; None for our own texts.
        tokenizer_folder: folder with the model's tokenizer.json; texts need one, ids do not.
        sequences: how many sequences to take of texts, fewer where the texts end. An .npz is taken whole.
        length: tokens of a sequence, fewer where the model's context is shorter.
        seed: of the choice of passages.
        context_length: longest sequence that the model takes; None: unknown.
        vocab_size: ids must be below it; None: unknown.

    Raises:
        ArtifactError: no such file, or nothing in it that could be used; a line that is no JSON; no UTF-8; no tokenizer;
            too little text for one sequence; ids that the model does not have.
    """
    file = None if path is None else Path(path)
    if file is not None and not file.is_file():
        raise ArtifactError(f"there is no calibration file {file}", _TEXT_HINT)
    if file is not None and (file.suffix == ".npz" or zipfile.is_zipfile(file)):
        return _checked(file.name, _read_ids(file), seed, context_length, vocab_size)
    length = min(length, context_length or length)
    texts = _Texts(_tokenizer(tokenizer_folder, file), length, seed)
    if file is None:
        name, rows = OUR_NAME, texts.cut(_our_passages(), sequences)
    elif file.suffix == ".jsonl":
        name, rows = file.name, texts.cut(_passages_of(file), sequences)
    elif file.suffix == ".txt":
        name, rows = file.name, texts.windows(file, sequences)
    else:
        raise ArtifactError(f"{file} is no .jsonl, .txt or .npz", _TEXT_HINT)
    if not rows:
        raise ArtifactError(
            f"{name} is too short to calibrate with: it gives no sequence of {length} tokens",
            "give more text; a few ten thousand words are a good measure",
        )
    return _checked(name, np.array(rows, dtype=np.int64), seed, context_length, vocab_size)


class _Texts:
    """Passages on their way to sequences of one length."""

    def __init__(self, tokenizer: Tokenizer, length: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._seed = seed

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        alone, around = self._plain("a"), self._tokenizer.encode("a")
        for start in range(len(around) - len(alone) + 1):
            if around[start : start + len(alone)] == alone:
                return around[:start], around[start + len(alone) :]
        return [], []

    @cached_property
    def separator(self) -> list[int]:
        """What stands between two passages."""
        before, behind = self._around
        end = behind or list(self._tokenizer.eos_ids[:1])
        return end if before in ([], end) else [*end, *before]

    def encode(self, passage: Passage) -> list[int]:
        """The ids of one passage, nothing around it."""
        if passage.messages and self._tokenizer.has_chat_template:
            try:
                return self._without_begin(self._tokenizer.encode_chat(passage.messages, add_generation_prompt=False))
            except PromptError:
                # Some templates know no system message; the words are worth something all the same.
                pass
        return self._plain(passage.text)

    def cut(self, passages: Sequence[Passage], sequences: int) -> list[list[int]]:
        """Up to `sequences` sequences of shuffled passages, no more of which are encoded than needed."""
        body, rows, stream = self._body, list[list[int]](), list[int]()
        for index in np.random.default_rng(self._seed).permutation(len(passages)):
            stream += [*self.encode(passages[index]), *self.separator]
            while len(stream) >= body and len(rows) < sequences:
                rows.append(self._sequence(stream[:body]))
                del stream[:body]
            if len(rows) == sequences:
                break
        return rows

    def windows(self, file: Path, sequences: int) -> list[list[int]]:
        """Up to `sequences` windows of a long text, in the order of the text."""
        _require_utf8(file)
        size = file.stat().st_size
        excerpt = _BYTES_A_TOKEN * self._length
        if size <= 2 * sequences * excerpt:
            return self._some_of(self._cut_whole(_read_text(file, 0, size)), sequences)
        # One window in each of as many equal parts: no two overlap, and the whole text has its say.
        starts = np.random.default_rng(self._seed).uniform(size=sequences)
        part = size // sequences
        parts = (_read_text(file, n * part + int(s * (part - excerpt)), excerpt) for n, s in enumerate(starts))
        return [rows[0] for rows in map(self._cut_whole, parts) if rows]

    def _cut_whole(self, text: str) -> list[list[int]]:
        ids, body = self._plain(text), self._body
        return [self._sequence(ids[start : start + body]) for start in range(0, len(ids) - body + 1, body)]

    def _some_of(self, rows: list[list[int]], count: int) -> list[list[int]]:
        chosen = np.random.default_rng(self._seed).permutation(len(rows))[:count]
        return [rows[index] for index in sorted(chosen)]

    @property
    def _body(self) -> int:
        return max(1, self._length - sum(map(len, self._around)))

    def _sequence(self, body: list[int]) -> list[int]:
        before, behind = self._around
        return [*before, *body, *behind][: self._length]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.backend.encode(text, add_special_tokens=False).ids
        return ids

    def _without_begin(self, ids: list[int]) -> list[int]:
        before, _ = self._around
        return ids[len(before) :] if before and ids[: len(before)] == before else ids


def _tokenizer(folder: Path | None, file: Path | None) -> Tokenizer:
    if folder is None or not (folder / "tokenizer.json").is_file():
        text = "our own texts" if file is None else file.name
        raise ArtifactError(
            f"{text} cannot be turned into token ids: the model has no tokenizer.json",
            f"give token ids: {_IDS_HINT}",
        )
    return Tokenizer.load(folder)


def _checked(name: str, ids: Ids, seed: int, context_length: int | None, vocab_size: int | None) -> Samples:
    if vocab_size is not None and ids.max() >= vocab_size:
        raise ArtifactError(
            f"{name} holds the token id {ids.max()}, and the model has {vocab_size} tokens",
            "make the ids with the tokenizer of this model",
        )
    if context_length is not None and ids.shape[1] > context_length:
        raise ArtifactError(
            f"{name} holds sequences of {ids.shape[1]} tokens, and the model takes {context_length}",
            "cut them into shorter ones",
        )
    digest = hashlib.sha256(str(ids.shape).encode() + np.ascontiguousarray(ids, dtype="<i8").tobytes())
    return Samples(name, ids, seed, digest.hexdigest())


# ---------------------------------------------------------------------- files


def _read_ids(path: Path) -> Ids:
    """An .npz file that holds one integer array [sequences, length], or several of which one is `input_ids`."""
    if not zipfile.is_zipfile(path):
        raise ArtifactError(f"{path} is not an .npz file, or it was cut short", _IDS_HINT)
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids = _only_array(archive, path)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(f"{path} is not a readable .npz file: {error}", _IDS_HINT) from None
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        raise ArtifactError(f"{path} holds {ids.dtype} {list(ids.shape)}, not token ids [sequences, length]", _IDS_HINT)
    return ids.astype(np.int64)


def _only_array(archive: Any, path: Path) -> npt.NDArray[Any]:
    names: list[str] = archive.files
    if "input_ids" in names:
        return np.asarray(archive["input_ids"])
    if len(names) != 1:
        raise ArtifactError(f"{path} holds the arrays {', '.join(names) or 'none'}, and none is input_ids", _IDS_HINT)
    return np.asarray(archive[names[0]])


def _our_passages() -> list[Passage]:
    folder = data_folder("calibration")
    files = sorted(file for file in folder.glob("*.jsonl") if file.name != HELD_OUT_NAME)
    if not files:
        raise ArtifactError(
            f"this installation lacks {folder / '*.jsonl'}",
            "install aiasst again, or give a calibration text of your own",
        )
    return [passage for file in files for passage in _passages_of(file)]


def _passages_of(path: Path) -> list[Passage]:
    found = list(read_passages(path, _TEXT_HINT))
    if not any(passage.text.strip() or passage.messages for passage in found):
        raise ArtifactError(f"{path} is empty", _TEXT_HINT)
    return found


def _require_utf8(path: Path) -> None:
    for _ in _decoded(path):
        pass


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while piece := file.read(_READ):
                yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text: {error.reason}", _TEXT_HINT) from None


def _read_text(path: Path, start: int, size: int) -> str:
    """The text in some bytes of a file; one that begins inside begins with a whole word."""
    with path.open("rb") as file:
        file.seek(start)
        # Characters that are cut at either end are left out; the file as a whole is known to be sound.
        text = file.read(size).decode("utf-8", errors="ignore")
    text = text.replace("\r\n", "\n").removeprefix("\ufeff")
    word = re.match(r"\S{0,40}\s+", text) if start else None
    return text[word.end() :] if word else text
