"""Imports: a checkpoint that others quantized becomes a float checkpoint, exactly, and a file of the grids its weights lie on.

scheme       what quantization_config says
gptq, awq, compressed    the layouts: words → integers, scales, zero points
packed       integers on a grid → float32, without a rounding that could not be undone
features     the sizes the model needs
tensors      the weight files

Nothing is requantized: the quantize stage finds every row again (artifacts.grids) and puts its integers into the graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.artifacts.document import read_json
from aiasst.artifacts.grids import FILE_NAME, GridsWriter, row_digests
from aiasst.artifacts.model_folder import disk_errors, require_free_disk
from aiasst.convert.imports.features import Features, features, require_features
from aiasst.convert.imports.packed import DAMAGED, UNQUANTIZED
from aiasst.convert.imports.scheme import KEYS, Scheme, quantization_of, read_scheme
from aiasst.convert.imports.tensors import Tensors
from aiasst.convert.sources import safetensors_file
from aiasst.convert.sources.checkpoint_folder import SAFETENSORS
from aiasst.convert.sources.safetensors_file import PlannedTensor
from aiasst.errors import CheckpointError, UnsupportedModelError
from aiasst.progress import Progress, ProgressFn, silent

__all__ = ["find_quantization", "unpack"]

STAGE = "unpack weights"
REMEDY = "free some space, or point TMPDIR at another disk"

_OLD_CONFIG = "quantize_config.json"
"""Where AutoGPTQ wrote its configuration before transformers knew of it."""

# Of activations and caches, which are rounded in other ways here or not at all.
_IGNORED = frozenset(
    {
        "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
        "q_scale", "k_scale", "v_scale", "q_zero_point", "k_zero_point", "v_zero_point",
    }
)  # fmt: skip
# A tensor of such a name that belongs to no packed module changes what the model computes.
_STRANGE = frozenset(
    {"qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "act_scales"}
)


@dataclass(frozen=True)
class _Plan:
    """What becomes of each tensor."""

    modules: Mapping[str, tuple[str, ...]]
    """Packed module → last names of its tensors."""
    kept: tuple[str, ...]
    """Tensors that stay as they are."""


def find_quantization(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the checkpoint in `folder` is quantized, by its config.json or AutoGPTQ's own file; None where it is not."""
    found = quantization_of(config)
    if found is None and (folder / _OLD_CONFIG).is_file():
        content = read_json(folder / _OLD_CONFIG, "quantization config", "fetch the checkpoint again")
        found = content if isinstance(content, Mapping) else None
    return found


def unpack(
    files: Sequence[Path],
    config: Mapping[str, Any],
    quantization: Mapping[str, Any],
    destination: Path,
    progress: ProgressFn = silent,
) -> Path:
    """Write the dequantized weights and the configuration without its quantization into `destination`.

    Args:
        files: The safetensors files of the checkpoint.
        config: Its config.json.
        quantization: What `find_quantization` found.
        destination: A folder of its own; model.safetensors, config.json and the grids are written there.
        progress: Told of each module.

    Returns:
        The file of the grids (artifacts.grids).

    Raises:
        UnsupportedModelError: a method, form or grid that is not read here.
        CheckpointError: sizes do not agree with each other or with the model, or tensors are missing.
        ResourceError: the disk is full, or would be.
    """
    scheme = read_scheme(quantization)
    tensors = Tensors(files)
    plain = {key: value for key, value in config.items() if key not in KEYS}
    sizes = features(plain)
    plan = _plan(tensors, scheme, sizes)
    grids = destination / FILE_NAME
    with disk_errors(destination, REMEDY):
        with GridsWriter(grids, scheme.method) as writer:
            _write(tensors, scheme, plan, sizes, destination / SAFETENSORS, writer, progress)
        plain.pop("torch_dtype", None)
        plain["dtype"] = "float32"
        (destination / "config.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return grids


def _plan(tensors: Tensors, scheme: Scheme, sizes: Mapping[str, Features]) -> _Plan:
    modules: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for name in tensors:
        module, _, part = name.rpartition(".")
        if part not in scheme.markers or module in modules:
            continue
        parts = tuple(p for p in (*scheme.required, *scheme.optional) if f"{module}.{p}" in tensors)
        missing = [p for p in scheme.required if p not in parts]
        if missing:
            raise CheckpointError(f"'{module}' is packed and lacks its {missing[0]}", DAMAGED)
        modules[module] = parts
        taken |= {f"{module}.{p}" for p in parts}
    if not modules:
        raise CheckpointError(
            f"the configuration says that the weights are quantized ({scheme.method}), and none is packed so",
            DAMAGED,
        )
    kept = []
    for name in tensors:
        module, _, part = name.rpartition(".")
        if name in taken or part in _IGNORED:
            continue
        if part in _STRANGE:
            raise UnsupportedModelError(
                f"the checkpoint has a tensor '{name}', whose part in the model is not known here", UNQUANTIZED
            )
        if part == "bias" and module in modules and not _has_bias(tensors, name, sizes.get(module)):
            continue
        kept.append(name)
    return _Plan(modules, tuple(kept))


def _has_bias(tensors: Tensors, name: str, sizes: Features | None) -> bool:
    """Whether the model has the bias `name`: AutoGPTQ wrote biases of zeros where it had none."""
    if sizes is None or sizes.bias:
        return True
    if np.any(tensors.array(name)):
        raise CheckpointError(f"the checkpoint has a '{name}', and the model has no bias there", DAMAGED)
    return False


def _write(
    tensors: Tensors,
    scheme: Scheme,
    plan: _Plan,
    sizes: Mapping[str, Features],
    file: Path,
    grids: GridsWriter,
    progress: ProgressFn,
) -> None:
    """Copy what is not packed, dequantize what is, one tensor at a time."""
    planned = [PlannedTensor(name, tensors.entry(name).dtype, tensors.entry(name).shape) for name in plan.kept]
    turned = {module for module in plan.modules if module in sizes and sizes[module].inputs_first}
    for module, parts in plan.modules.items():
        n, k = scheme.size(module, _arrays(tensors, module, parts))
        require_features(module, n, k, sizes.get(module))
        planned.append(PlannedTensor(f"{module}.weight", "F32", (k, n) if module in turned else (n, k)))
    require_free_disk(file.parent, sum(tensor.bytes for tensor in planned), REMEDY)
    packed_weights = {f"{module}.weight": module for module in plan.modules}
    done = 0

    def data(name: str) -> memoryview:
        nonlocal done
        if name not in packed_weights:
            return tensors.raw(name).data
        module = packed_weights[name]
        progress(Progress(STAGE, done, len(packed_weights), module))
        done += 1
        packed = scheme.unpack(module, _arrays(tensors, module, plan.modules[module]))
        weights = packed.dequantize()
        grids.add(module, packed.grid, row_digests(weights), weights.shape[1])
        return np.ascontiguousarray(weights.T if module in turned else weights).data

    safetensors_file.write(file, planned, data)
    progress(Progress(STAGE, done, done, scheme.method))


def _arrays(tensors: Tensors, module: str, parts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    return {part: tensors.array(f"{module}.{part}") for part in parts}
