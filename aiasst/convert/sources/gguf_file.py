"""A GGUF file becomes a Hugging Face folder: fp32 safetensors, configuration, tokenizer. Knows nothing of ONNX.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names and layouts of weights, and the tokenizer, are mapped by
transformers; the configuration is completed in gguf_config. One tensor is in memory at a time. A file with a tensor that the
model would not use, or a model with a weight that the file does not have, is refused: half a model would answer, but dumber.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aiasst.artifacts.model_folder import disk_errors, require_free_disk
from aiasst.convert.sources import gguf_config, gguf_header, gguf_tokenizer, safetensors_file
from aiasst.convert.sources.checkpoint_folder import SAFETENSORS
from aiasst.convert.sources.safetensors_file import PlannedTensor
from aiasst.errors import CheckpointError, MissingExtraError, UnsupportedModelError
from aiasst.progress import Progress, ProgressFn, silent

REMEDY = "free some space, or point TMPDIR at another disk"

ROPE_FACTORS = "rope_freqs.weight"
"""Not a weight: part of the configuration, which gguf_config reads."""


def unpack(file: Path, destination: Path, progress: ProgressFn = silent) -> None:
    """Write the Hugging Face form of the GGUF `file` into the folder `destination`.

    Raises:
        CheckpointError: the file is damaged or incomplete.
        UnsupportedModelError: its architecture, or something in it, is not understood.
        ResourceError: the disk is full, or would be.
        MissingExtraError: gguf, torch or transformers is not installed.
    """
    progress(Progress("unpack GGUF", 0, 0, file.name))
    header = gguf_header.read(file)
    metadata, shapes = header.metadata, header.shapes
    _refuse_part(file, metadata)
    gguf_config.refuse_unknown(file.name, metadata)
    if "token_embd.weight" not in shapes:
        raise CheckpointError(f"{file.name} lacks the weight 'token_embd.weight'", safetensors_file.DAMAGED)
    model = _skeleton(_config(file, metadata, shapes))
    with disk_errors(destination, REMEDY):
        _write_weights(file, model, destination, progress)
        _write_config(model, destination, end_of_turn=metadata.get("tokenizer.ggml.eot_token_id"))
        gguf_tokenizer.write(file, header, destination)


def _refuse_part(file: Path, metadata: Mapping[str, Any]) -> None:
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{file.name} is one of {metadata['split.count']} parts of a model",
            "join them first: llama-gguf-split --merge FIRST-PART WHOLE.gguf",
        )


def _config(file: Path, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    try:
        from gguf import GGUFReader
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "convert") from None

    factors = None
    if ROPE_FACTORS in shapes:
        (tensor,) = (t for t in GGUFReader(file).tensors if t.name == ROPE_FACTORS)
        factors = np.asarray(tensor.data, dtype=np.float32)
    try:
        mapped = load_gguf_checkpoint(str(file))["config"]
        return gguf_config.complete(mapped, metadata, shapes, factors)
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the numbers in {file.name} make no model ({type(error).__name__}: {error})", safetensors_file.DAMAGED
        ) from error


def _skeleton(config: Mapping[str, Any]) -> Any:
    """The model of transformers without memory for its weights, to know their names and shapes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kwargs = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **kwargs))
    except (ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(
            f"the numbers in the GGUF file make no model: {error}", safetensors_file.DAMAGED
        ) from error


def _write_weights(file: Path, model: Any, destination: Path, progress: ProgressFn) -> None:
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors if tensor.name != ROPE_FACTORS}
    architecture = gguf_config.architecture_of(model.config.model_type)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    _refuse_incomplete(file, stored, names, model)
    shapes: dict[str, Sequence[int]] = {name: tensor.shape for name, tensor in model.state_dict().items()}
    origin = {names[name]: name for name in stored}
    planned = [PlannedTensor(name, "F32", tuple(shapes[name])) for name in origin]
    require_free_disk(destination, sum(tensor.bytes for tensor in planned), REMEDY)
    done = 0

    def data(name: str) -> memoryview:
        nonlocal done
        progress(Progress("unpack GGUF", done, len(planned), name))
        done += 1
        return _as_float32(stored[origin[name]], processor, tuple(shapes[name])).data

    safetensors_file.write(destination / SAFETENSORS, planned, data)


def _as_float32(tensor: Any, processor: Any, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One tensor dequantized, in transformers' layout (Q and K of llama are stored with their rotary pairs interleaved)."""
    from gguf import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise UnsupportedModelError(
            f"'{tensor.name}' is in the format {tensor.tensor_type.name}, which cannot be unpacked here",
            "use the Hugging Face form of this model",
        ) from None
    # The head of gpt2 needs nothing, and the processor would want to store it itself.
    weights = values if tensor.name == "output.weight" else processor.process(weights=values, name=tensor.name).weights
    if weights.shape != shape:
        raise CheckpointError(
            f"'{tensor.name}' in the GGUF file has the shape {weights.shape}, the model needs {shape}",
            safetensors_file.DAMAGED,
        )
    return np.ascontiguousarray(weights, dtype=np.float32)


def _refuse_incomplete(file: Path, stored: Mapping[str, Any], names: Mapping[str, str], model: Any) -> None:
    """Raise where the file has a tensor that the model would not use, or lacks one that it needs."""
    unused = sorted(set(stored) - set(names))
    if unused:
        raise UnsupportedModelError(
            f"{file.name} has a weight '{unused[0]}' that a {model.config.model_type} model has no place for",
            "use the Hugging Face form of this model",
        )
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = sorted(set(model.state_dict()) - tied - {names[name] for name in stored})
    if missing:
        raise CheckpointError(f"{file.name} lacks the weight '{missing[0]}'", safetensors_file.DAMAGED)


def _write_config(model: Any, destination: Path, end_of_turn: int | None) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(destination)
    ends = [token for token in dict.fromkeys((model.config.eos_token_id, end_of_turn)) if token is not None]
    ids = {"bos_token_id": model.config.bos_token_id, "eos_token_id": ends, "pad_token_id": model.config.pad_token_id}
    text = json.dumps({name: value for name, value in ids.items() if value not in (None, [])}, indent=2)
    (destination / "generation_config.json").write_text(text + "\n", encoding="utf-8")
