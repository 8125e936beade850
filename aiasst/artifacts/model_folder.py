"""The model folder: its paths and its manifest `aiasst.json`. Knows no graph format and no runtime.

    DIR/
    ├── aiasst.json            manifest: source, task, shape, weight table, verification, quantization, files with sha256
    ├── model.onnx             the graph
    ├── model.onnx.data        the weights, external to the graph
    ├── twin.onnx              a second form of the same model, where there is one: same inputs, outputs and cache
    ├── twin.onnx.data         the weights that only that has; what both have alike lies in model.onnx.data
    └── tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, …   copied from the checkpoint

The folder appears whole or not at all: `staged_folder` writes beside the destination and renames.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from aiasst.artifacts.document import Document, read_json, write_text_atomically
from aiasst.artifacts.encoding import MODULE_FILES, Encoding, read_encoding, read_modules
from aiasst.errors import ArtifactError, ResourceError
from aiasst.sizes import human_bytes

MANIFEST_NAME = "aiasst.json"
GRAPH_NAME = "model.onnx"
WEIGHTS_NAME = "model.onnx.data"
TWIN_GRAPH_NAME = "twin.onnx"
TWIN_WEIGHTS_NAME = "twin.onnx.data"
MANIFEST_VERSION: Literal[1] = 1
_GENERATES = "text-generation"
_FLOAT_BYTES = 4
# What is measured on a model is no part of it.
MEASURED_FILES = frozenset({"card.json", "CARD.md"})

# Copied along from a checkpoint when present: what is needed to turn text into ids and back, and to know the origin.
TRAVELLING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""And the config.json and numbers of each module that modules.json names."""

Role = Literal[
    "embed", "position_embed", "type_embed", "lm_head", "classifier",
    "qkv", "q", "k", "v", "o", "gate_up", "gate", "up", "down",
    "norm", "bias", "rotary", "other",
]  # fmt: skip


class Source(Document):
    """Where the weights came from."""

    kind: Literal["folder", "hub", "gguf", "onnx"]
    name: str
    """Folder name, hub id or file name as the user gave it (no absolute path)."""
    revision: str | None = None
    """Commit of the hub repository."""
    sha256: str | None = None
    """Hash over the weight files of the checkpoint, so that two folders of one origin can be recognised."""


class Shape(Document):
    """The numbers of the architecture that running and planning need."""

    model_type: str
    layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    heads: int
    kv_heads: int
    head_dim: int
    """As the cache has it: padded to a multiple of 16 where the checkpoint's own is not."""


class Tokens(Document):
    """Special token ids and the checkpoint's own sampling defaults."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None


class Weight(Document):
    """One row of the weight table: an initializer of the graph that is worth naming (matrices and vectors of the model)."""

    role: Role
    layer: int | None
    shape: tuple[int, ...]
    """Logical shape: [K, N] of a product, [vocabulary, hidden] of an embedding; not the packed bytes' shape."""
    format: str
    """fp32, fp16, int2-b64, int4-b128, int8-b128, w8a8, …: the format's own label."""
    bytes: int
    """All that it takes on disk: packed values, scales and zero points."""
    shared_with: str | None = None
    """Name of the weight whose bytes these are (a tied lm_head, what a second form has from the first); then `bytes` is 0."""
    rows: tuple[int, int, int] | None = None
    """Of an embedding or head that was cut: the first token whose row is here, the one behind the last, and how many there are."""


class Verification(Document):
    """The converted model against the original in torch, on real text."""

    reference: str
    text: str
    tokens: int
    max_abs_diff: float
    top1_agreement: float
    """Share of positions with the same most likely token (decoders), or of rows with the same nearest neighbour (encoders)."""
    tolerance: float


class Calibration(Document):
    """Token sequences that were given for calibration."""

    name: str
    """File name as the user gave it (no absolute path), or that of our own texts."""
    sequences: int
    tokens: int
    seed: int = 0
    """Of the choice of passages."""
    sha256: str = ""
    """Hash over the token ids: the same ids give the same weights."""
    used: bool
    """Whether the algorithm looked at them; round-to-nearest does not."""


class CacheQuantization(Document):
    """How keys and values of earlier tokens are kept, where that is not in floating point."""

    format: Literal["int8"]
    scales: Literal["per-channel"]
    """What shares a scale: a channel of a head, whatever the token."""
    calibration: Calibration
    """What the scales were found on."""


class Quantization(Document):
    """How the weights were made small, and the cache."""

    recipe: str
    algorithm: str
    """The one that was used: where a model could not be calibrated, not the recipe's."""
    calibration: Calibration | None = None
    bits_per_weight: float
    """All included: packed values, scales, zero points, padding, embeddings, head and what stayed in floating point.

    Rotary tables are no weights (they follow from the configuration) and do not count.
    """
    cache: CacheQuantization | None = None
    """None: it is kept as the graph of `convert` keeps it."""


class Twin(Document):
    """A second form of the model in the same folder, for long prompts and many sequences at once."""

    quantization: Quantization
    """How its weights were made small; `bits_per_weight` is its own, with what it shares."""
    weights: dict[str, Weight]
    """Its weight table; what lies in the first form's file is shared with a weight of that, and has no bytes here."""


class FileRecord(Document):
    """Size and hash of one file of the folder."""

    bytes: int
    sha256: str


class Manifest(Document):
    """`aiasst.json`."""

    schema_version: Literal[1] = MANIFEST_VERSION
    aiasst_version: str
    task: str
    exporter: str
    source: Source
    shape: Shape | None
    """None for a foreign ONNX file, of which only the weights are known."""
    tokens: Tokens = Tokens()
    encoding: Encoding | None = None
    """Of an encoder: how texts go in and what becomes of its answers. None: of a decoder, or the files beside say it."""
    weights: dict[str, Weight]
    """Initializer name (the stem shared by its packed parts) → what it is."""
    verification: Verification | None = None
    quantization: Quantization | None = None
    twin: Twin | None = None
    files: dict[str, FileRecord]
    """Relative path → size and hash; every file of the folder but the manifest itself."""

    @model_serializer(mode="wrap")
    def _plain_without_extras(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A decoder of one form is written, and identified, as it was before there were two forms, and encoders.
        data: dict[str, Any] = handler(self)
        for name in ("twin", "encoding"):
            if data[name] is None:
                del data[name]
        return data


@dataclass(frozen=True)
class ModelFolder:
    """A model folder on disk, opened and found complete."""

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """Path of the ONNX graph."""
        return self.path / GRAPH_NAME

    @property
    def twin_graph(self) -> Path:
        """Path of the second form's graph; it exists where the manifest has a `twin`."""
        return self.path / TWIN_GRAPH_NAME

    @property
    def weight_bytes(self) -> int:
        """Bytes of graph and weights on disk; of the first form, where there are two."""
        return self._bytes_of(GRAPH_NAME)

    @property
    def twin_bytes(self) -> int:
        """Bytes on disk of the second form beside the first; 0 where there is none."""
        return self._bytes_of(TWIN_GRAPH_NAME)

    @property
    def twin_weight_bytes(self) -> int:
        """Bytes of graph and weights that running the second form reads, those it shares included; 0 where there is none."""
        if self.manifest.twin is None:
            return 0
        lenders = {row.shared_with for row in self.manifest.twin.weights.values() if row.shared_with is not None}
        return self.twin_bytes + sum(row.bytes for name, row in self.manifest.weights.items() if name in lenders)

    def _bytes_of(self, graph: str) -> int:
        return sum(r.bytes for name, r in self.manifest.files.items() if name.startswith(graph))

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers; 0 of a model that has no cache, or does not tell its shape."""
        shape, quantization = self.manifest.shape, self.manifest.quantization
        if shape is None or self.manifest.task != _GENERATES:
            return 0
        small = quantization is not None and quantization.cache is not None
        return 2 * shape.layers * shape.kv_heads * shape.head_dim * (1 if small else _FLOAT_BYTES)

    @property
    def encoding(self) -> Encoding:
        """How texts go into an encoder and what becomes of its answers. Raises ArtifactError where a file beside is broken."""
        return self.manifest.encoding or read_encoding(self.path)

    @property
    def identity(self) -> str:
        """Hash (sha256, hexadecimal) that is another one when the model is; an accuracy card changes nothing."""
        files = {name: record for name, record in self.manifest.files.items() if name not in MEASURED_FILES}
        return hashlib.sha256(self.manifest.model_copy(update={"files": files}).to_json().encode()).hexdigest()

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Open the folder at `path`; sizes are checked, hashes are not (see `check_hashes`).

        Raises:
            ArtifactError: no folder, no manifest, an unknown version, a file missing or of another size.
        """
        path = Path(path)
        if not path.exists():
            raise ArtifactError(f"there is no folder {path}", "convert a checkpoint first: aiasst convert MODEL -o DIR")
        hint = "a model folder is what `aiasst convert` and `aiasst quantize` write"
        if not path.is_dir():
            raise ArtifactError(f"{path} is not a folder", hint)
        if not (path / MANIFEST_NAME).exists():
            if (path / "config.json").exists():
                raise ArtifactError(f"{path} is a checkpoint, not a model folder", f"aiasst convert {path}")
            raise ArtifactError(f"{path} has no {MANIFEST_NAME}", hint)
        data = read_json(path / MANIFEST_NAME, "manifest", hint)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != MANIFEST_VERSION:
            raise ArtifactError(
                f"{path / MANIFEST_NAME} has schema version {version}, this program reads {MANIFEST_VERSION}",
                "convert the checkpoint again with this version",
            )
        manifest = Manifest.parse(data, str(path / MANIFEST_NAME))
        if manifest.twin is not None and not {TWIN_GRAPH_NAME, TWIN_WEIGHTS_NAME} <= manifest.files.keys():
            raise ArtifactError(
                f"{path / MANIFEST_NAME} tells of a second form, and lists no {TWIN_GRAPH_NAME} with its weights",
                "quantize the original again: aiasst quantize DIR --bits 4 --twin",
            )
        for name, record in manifest.files.items():
            file = inside(path, name)
            if not file.is_file():
                raise ArtifactError(f"{path} is incomplete: {name} is missing", "convert or copy it again")
            if file.stat().st_size != record.bytes:
                raise ArtifactError(
                    f"{file} has {file.stat().st_size} bytes, the manifest says {record.bytes}",
                    "convert or copy it again",
                )
        return cls(path, manifest)

    def check_hashes(self) -> None:
        """Read every file and compare its hash. Raises ArtifactError at the first that differs."""
        for name, record in self.manifest.files.items():
            if sha256_of(self.path / name) != record.sha256:
                raise ArtifactError(f"{self.path / name} has changed since it was written", "convert or copy it again")


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused where it would leave the folder."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"the path '{name}' leaves the folder {folder}", "do not use this folder: it was tampered with"
        )
    return folder / name


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file under `folder` but the manifest, by relative posix path, sorted."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST_NAME)
    return {p.relative_to(folder).as_posix(): FileRecord(bytes=p.stat().st_size, sha256=sha256_of(p)) for p in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `aiasst.json` into `folder`."""
    write_text_atomically(folder / MANIFEST_NAME, manifest.to_json())


def copy_travelling_files(source: Path, destination: Path) -> None:
    """Copy tokenizer and configuration files that exist in `source`, and the numbers of projections.

    Raises:
        ArtifactError: a file that declares what stands behind the model is broken.
    """
    modules = [module.folder for module in read_modules(source) if module.folder]
    beside = [f"{module}/{name}" for module in modules for name in MODULE_FILES]
    for name in dict.fromkeys([*TRAVELLING_FILES, *beside]):
        if (source / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, destination / name)


@contextmanager
def staged_folder(destination: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `destination`; it takes that name when the block ends well, and vanishes when it does not.

    Raises:
        ArtifactError: `destination` exists and `force` is not set, or it exists and is no folder.
        ResourceError: the disk is full.
    """
    refuse_existing(destination, force=force)
    staging = destination.parent / f".{destination.name}.{os.getpid()}.partial"
    try:
        with disk_errors(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            yield staging
            _put_in_place(staging, destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(destination: Path, *, force: bool) -> None:
    """Raise ArtifactError where `destination` exists and may not be replaced; called before the work begins."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ArtifactError(f"{destination} exists and is not a folder", "choose another destination with -o")
    if not force:
        raise ArtifactError(
            f"{destination} already exists", "choose another destination with -o, or --force to replace it"
        )
    # --force replaces what we wrote, never somebody's other folder.
    if any(destination.iterdir()) and not (destination / MANIFEST_NAME).exists():
        raise ArtifactError(
            f"{destination} is not a model folder, so --force will not replace it", "choose another destination with -o"
        )


def _put_in_place(staging: Path, destination: Path) -> None:
    if not destination.exists():
        staging.rename(destination)
        return
    aside = destination.parent / f".{destination.name}.{os.getpid()}.old"
    destination.rename(aside)
    try:
        staging.rename(destination)
    except OSError:
        aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


_REMEDY = "free some space, or choose another disk with -o"


def require_free_disk(destination: Path, needed: int, remedy: str = _REMEDY) -> None:
    """Raise ResourceError where the disk that `destination` will lie on has less than `needed` bytes free."""
    place = next(path for path in (destination, *destination.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(f"{destination} needs {human_bytes(needed)} of disk, {human_bytes(free)} are free", remedy)


@contextmanager
def disk_errors(destination: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Turn 'no space left' and 'read-only' into a ResourceError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"the disk is full: {destination} could not be written; nothing was left behind",
                remedy,
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None:
            raise ResourceError(
                f"may not write {error.filename}: {error.strerror}", "choose another place with -o"
            ) from error
        raise
