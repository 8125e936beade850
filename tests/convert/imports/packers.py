"""Quantized checkpoints as others write them, made from tiny float ones: the formats by their specifications, in plain Python.

Nothing here is shared with the program: words are put together as large integers, value by value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

LINEAR = re.compile(r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|c_attn|c_proj|c_fc)$")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Module:
    """What a packed matrix holds."""

    values: np.ndarray
    """uint8 [N, K]."""
    scales: np.ndarray
    """float32 [N, groups]."""
    zeros: np.ndarray
    """uint8 [N, groups]."""
    bits: int
    group_size: int
    groups: np.ndarray
    """Group of each input, int [K]."""

    @property
    def weight(self) -> np.ndarray:
        """float32 [N, K], in the arithmetic of float64."""
        steps = self.values.astype(np.float64) - self.zeros[:, self.groups]
        return (steps * self.scales[:, self.groups]).astype(np.float32)


@dataclass
class Style:
    """How to quantize a module."""

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    scale_dtype: Any = np.float16
    act_order: bool = False


@dataclass
class Made:
    """A written checkpoint."""

    folder: Path
    modules: dict[str, Module] = field(default_factory=dict)


def quantize(weight: np.ndarray, style: Style, seed: int = 0) -> Module:
    """Round to nearest; asymmetric grids cover the range of a group, whatever zero point that gives."""
    n, k = weight.shape
    size = style.group_size if 0 < style.group_size < k else k
    groups = np.arange(k) // size
    if style.act_order:
        groups = np.random.default_rng(seed).permutation(groups)
    count = int(groups.max()) + 1
    highest = 2**style.bits - 1
    scales = np.empty((n, count), dtype=np.float32)
    zeros = np.full((n, count), 2 ** (style.bits - 1), dtype=np.uint8)
    values = np.empty((n, k), dtype=np.uint8)
    for group in range(count):
        mine = groups == group
        part = weight[:, mine]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        scale = np.abs(part).max(axis=1) / (highest // 2) if style.symmetric else (high - low) / highest
        scale = scale.astype(style.scale_dtype).astype(np.float32)
        if not style.symmetric:
            zeros[:, group] = np.clip(np.rint(-low / scale), 0, highest)
        scales[:, group] = scale
        values[:, mine] = np.clip(np.rint(part / scale[:, None]) + zeros[:, group, None], 0, highest)
    return Module(values, scales, zeros, style.bits, size, groups)


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """Each row of [rows, count] as one large integer, cut into int32 [rows, words], low words first."""
    count = -(-values.shape[1] * bits // 32)
    packed = []
    for row in values.tolist():
        number = sum(value << (bits * place) for place, value in enumerate(row))
        packed.append([(number >> (32 * word)) & 0xFFFFFFFF for word in range(count)])
    return np.array(packed, dtype=np.uint32).view(np.int32)


def minus_one(packed: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points as format v1 stores them: one taken from each, from whole words (three bits: value by value)."""
    if bits == 3:
        return words((zeros.astype(int) - 1) & 7, 3)
    ones = sum(1 << place for place in range(0, 32, bits))
    return ((packed.view(np.uint32).astype(np.int64) - ones) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def gptq_tensors(
    name: str, module: Module, *, v1: bool, g_idx: bool = True, scales: Any = np.float16
) -> dict[str, Any]:
    zeros = words(module.zeros.T, module.bits)
    tensors = {
        f"{name}.qweight": np.ascontiguousarray(words(module.values, module.bits).T),
        f"{name}.qzeros": minus_one(zeros, module.zeros.T, module.bits) if v1 else zeros,
        f"{name}.scales": np.ascontiguousarray(module.scales.T).astype(scales),
    }
    if g_idx:
        tensors[f"{name}.g_idx"] = module.groups.astype(np.int32)
    return tensors


def awq_tensors(name: str, module: Module) -> dict[str, Any]:
    def interleaved(rows: np.ndarray) -> np.ndarray:
        places = rows.reshape(len(rows), -1, 8)[:, :, list(AWQ_ORDER)]
        return words(places.reshape(len(rows), -1), 4)

    return {
        f"{name}.qweight": interleaved(module.values.T),
        f"{name}.qzeros": interleaved(module.zeros.T),
        f"{name}.scales": np.ascontiguousarray(module.scales.T).astype(np.float16),
    }


def compressed_tensors(name: str, module: Module, *, symmetric: bool, scales: Any = np.float16) -> dict[str, Any]:
    tensors = {
        f"{name}.weight_packed": words(module.values, module.bits),
        f"{name}.weight_shape": np.array(module.values.shape, dtype=np.int64),
        f"{name}.weight_scale": module.scales.astype(scales),
    }
    if not symmetric:
        tensors[f"{name}.weight_zero_point"] = np.ascontiguousarray(words(module.zeros.T, module.bits).T)
    return tensors


def int8_tensors(name: str, module: Module) -> dict[str, Any]:
    return {
        f"{name}.weight": (module.values.astype(np.int16) - 128).astype(np.int8),
        f"{name}.weight_scale": module.scales.astype(np.float32),
    }


def pack(
    folder: Path,
    quantization: dict[str, Any],
    tensors_of: Callable[[str, Module], dict[str, Any]],
    style: Style | Callable[[str], Style | None] | None = None,
    *,
    matches: re.Pattern[str] = LINEAR,
    transposed: bool = False,
) -> Made:
    """Replace the linear weights of the float checkpoint in `folder` by packed ones and write its quantization_config."""
    tensors = load_file(folder / "model.safetensors")
    made = Made(folder)
    for number, name in enumerate(sorted(tensors)):
        module = name.removesuffix(".weight")
        if name == module or not matches.match(module):
            continue
        chosen = style(module) if callable(style) else style or Style()
        if chosen is None:
            continue
        weight = tensors.pop(name).astype(np.float32)
        # Modules that read the same input share the order of their inputs, as they share its Hessian.
        kin = "qkv" if module[-6:] in ("q_proj", "k_proj", "v_proj") else module.replace("gate_proj", "up_proj")
        seed = sum(map(ord, kin)) if chosen.act_order else number
        made.modules[module] = quantize(weight.T if transposed else weight, chosen, seed)
        tensors |= tensors_of(module, made.modules[module])
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors")
    configure(folder, **quantization)
    return made


def configure(folder: Path, **quantization: Any) -> None:
    """Add to the quantization_config of a written checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **quantization}
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Let `change` do something to the tensors of a written checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors")
