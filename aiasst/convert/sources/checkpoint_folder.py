"""A Hugging Face checkpoint folder on disk: what belongs to it, its configuration, its weight files, all checked from headers.

Knows neither the hub nor GGUF, and reads no weight.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from aiasst.artifacts.encoding import read_modules
from aiasst.convert.sources.safetensors_file import read_header
from aiasst.errors import ArtifactError, CheckpointError, MissingExtraError
from aiasst.progress import Progress, ProgressFn, silent

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_LARGEST_CONFIG = 16 * 2**20

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
"""What a checkpoint has beside its weights and we have a use for: configuration, tokenizer, chat template, pooling."""

MODULE_WEIGHTS = (SAFETENSORS, PICKLE)
"""Where a module that modules.json names may have its numbers, the better place first."""

# What training leaves behind has the suffix of pickled weights and is none.
_TRAINING_LEFTOVERS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "trainer_state")


def module_files(folder: Path) -> list[str]:
    """What the modules that modules.json names have in folders of their own: config.json, and the weights of a projection.

    Raises:
        CheckpointError: modules.json is broken, or names a folder that is none of the checkpoint's.
    """
    try:
        modules = read_modules(folder)
    except ArtifactError as error:
        raise CheckpointError(error.message, "download the checkpoint again") from None
    files: list[str] = []
    for module in modules:
        if module.folder:
            weights = MODULE_WEIGHTS if module.kind == "Dense" else ()
            files += [f"{module.folder}/{name}" for name in ("config.json", *weights)]
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint.

    Raises:
        CheckpointError: there is none, it is no JSON object, or it has no model_type.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint", _hint_for(folder))
    return read_config_file(path)


def read_config_file(path: Path) -> dict[str, Any]:
    """The parsed config.json at `path`, wherever it lies.

    Raises:
        CheckpointError: it is no JSON object, larger than any configuration, or it has no model_type.
    """
    if path.stat().st_size > _LARGEST_CONFIG:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, and no configuration is so large", "fetch it again"
        )
    config = _read_object(path)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise CheckpointError(
            f"{path} has no model_type, so nobody can tell what model this is",
            "use the Hugging Face form of the checkpoint (transformers' save_pretrained writes it)",
        )
    return config


def _hint_for(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "this is an adapter (LoRA): merge it into its base model first, then convert the result"
    if (folder / "aiasst.json").exists():
        return f"this is a converted model folder already: aiasst inspect {folder}"
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return f"name the GGUF file itself: {gguf[0]}"
    return "give the folder with config.json, *.safetensors and tokenizer.json"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text", "fetch the file again") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg})", "fetch the file again"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply", "fetch the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object", "fetch the file again")
    return data


def refuse_custom_code(config: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Raise CheckpointError where the model is code in the checkpoint that transformers does not have itself."""
    if trust_remote_code or not config.get("auto_map"):
        return
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        raise MissingExtraError("transformers", "convert") from None
    if config["model_type"] not in CONFIG_MAPPING_NAMES:
        raise CheckpointError(
            f"the model type '{config['model_type']}' is Python code that comes with the checkpoint; "
            "converting it means running that code on this machine with your rights",
            "read the .py files of the checkpoint; if you trust them: --trust-remote-code",
        )


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files in name order, found sound from their headers; empty where the folder has no safetensors weights.

    Raises:
        CheckpointError: a file is damaged, the index names a shard that is missing or outside the folder,
            or a tensor that its shard does not have.
    """
    if (folder / SAFETENSORS).exists():
        _refuse_stray_index(folder)
        read_header(folder / SAFETENSORS)
        return [folder / SAFETENSORS]
    if not (folder / SAFETENSORS_INDEX).exists():
        return []
    shards = read_index(folder / SAFETENSORS_INDEX)
    for shard, names in shards.items():
        missing = names - read_header(folder / shard).keys()
        if missing:
            raise CheckpointError(
                f"{shard} has no tensor '{min(missing)}', which {SAFETENSORS_INDEX} says it has",
                "index and weight files are not of one checkpoint: fetch all of them again",
            )
    return [folder / shard for shard in shards]


def _refuse_stray_index(folder: Path) -> None:
    """Raise where an index beside the whole file names shards that are not there: some readers would follow it."""
    if not (folder / SAFETENSORS_INDEX).exists():
        return
    absent = [shard for shard in shard_names(folder / SAFETENSORS_INDEX) if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} has {SAFETENSORS} and also {SAFETENSORS_INDEX}, which names {absent[0]}, which is missing",
            f"delete {SAFETENSORS_INDEX} if {SAFETENSORS} is the whole model, or fetch the missing files",
        )


def read_index(path: Path) -> dict[str, set[str]]:
    """Shard file name → names of its tensors, in name order, from an index file (safetensors or pickle).

    Raises:
        CheckpointError: the index is broken, or a shard is missing or would leave the folder.
    """
    shards = _parse_index(path)
    for shard in shards:
        if not (path.parent / shard).is_file():
            raise CheckpointError(f"the weight file {shard}, named in {path.name}, is missing", "fetch it again")
    return shards


def shard_names(path: Path) -> list[str]:
    """The weight files that an index names, in name order, there or not. Raises CheckpointError as `read_index` does."""
    return list(_parse_index(path))


def _parse_index(path: Path) -> dict[str, set[str]]:
    weight_map = _read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(s, str) for s in weight_map.values()):
        raise CheckpointError(f"{path} has no proper weight_map", "fetch the file again")
    shards: dict[str, set[str]] = {}
    for name, shard in sorted(weight_map.items(), key=lambda item: item[1]):
        shards.setdefault(shard, set()).add(name)
    for shard in shards:
        if not _stays_inside(shard):
            raise CheckpointError(
                f"{path.name} names the weight file '{shard}', which is outside the folder",
                "do not use this checkpoint: it was tampered with",
            )
    return shards


def _stays_inside(name: str) -> bool:
    # Lexically: the files of a hub cache are links out of the folder, and rightly so.
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and "\\" not in name and ":" not in name


def pickle_files(folder: Path) -> list[Path]:
    """The pickled weight files (.bin, .pt, …) of the folder in name order; nothing is opened.

    Raises:
        CheckpointError: an index names a shard that is missing or outside the folder.
    """
    if (folder / PICKLE).exists():
        return [folder / PICKLE]
    if (folder / PICKLE_INDEX).exists():
        return [folder / shard for shard in read_index(folder / PICKLE_INDEX)]
    found = (p for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES and p.is_file())
    return sorted(p for p in found if not p.name.startswith(_TRAINING_LEFTOVERS))


def refuse_leading_links(folder: Path) -> None:
    """Raise CheckpointError where a small file that is copied into every model folder is a link to somewhere else.

    A checkpoint from a stranger could otherwise carry a private file of this machine into a folder that is passed on.
    Links into the blobs of a hub cache are how its snapshots are made, and weight files may be links to anywhere:
    they are never copied, and only read where they are sound safetensors.
    """
    root = folder.resolve()
    small = [name for name in module_files(folder) if not name.endswith(MODULE_WEIGHTS)]
    for name in [*COMPANIONS, *small]:
        if not (folder / name).exists():
            continue
        target = (folder / name).resolve()
        if not target.is_relative_to(root) and not _is_cache_blob(target):
            raise CheckpointError(
                f"{name} in {folder} is a link to {target}, outside the folder", "put the file itself there"
            )


def copy_companions(folder: Path, destination: Path) -> None:
    """Copy what `folder` has beside its weights into `destination`."""
    # Python code is there only where the user asked for it; it was not fetched otherwise.
    for name in [*COMPANIONS, *module_files(folder), *(path.name for path in folder.glob("*.py"))]:
        if (folder / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, destination / name)


def _is_cache_blob(target: Path) -> bool:
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def sha256_of_all(files: Iterable[Path], progress: ProgressFn = silent) -> str:
    """Hash over the bytes of all files, one after the other: what `cat FILES | sha256sum` prints."""
    files = list(files)
    total, done = sum(file.stat().st_size for file in files), 0
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
                done += len(piece)
                progress(Progress("hash weights", done, total, path.name))
    return digest.hexdigest()
