"""What a checkpoint's quantization_config says, module by module: which layout, how many bits, which groups. Reads no weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy.typing as npt

from aiasst.convert.imports import awq, compressed, gptq
from aiasst.convert.imports.packed import DAMAGED, UNQUANTIZED, Packed
from aiasst.errors import CheckpointError, UnsupportedModelError

KEYS = ("quantization_config", "compression_config")
"""Where config.json says how the weights are packed."""

KNOWN = "GPTQ, AWQ, AutoRound and compressed-tensors (pack-quantized, int-quantized)"

Layout = Literal["gptq", "awq"]

_STRANGER = 9


class Scheme(Protocol):
    """How the modules of one checkpoint are packed."""

    @property
    def method(self) -> str:
        """For the manifest: gptq, awq, auto-round, compressed-tensors."""
        ...

    @property
    def markers(self) -> Sequence[str]:
        """A module that has a tensor of such a last name is packed."""
        ...

    @property
    def required(self) -> Sequence[str]:
        """Last names of the tensors that a packed module must have."""
        ...

    @property
    def optional(self) -> Sequence[str]:
        """Last names of those it may have."""
        ...

    def size(self, module: str, parts: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
        """(N, K) of one module, from the shapes of its tensors."""
        ...

    def unpack(self, module: str, parts: Mapping[str, npt.NDArray[Any]]) -> Packed:
        """The integers of one module; CheckpointError where its tensors do not agree with the configuration."""
        ...


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of config.json that describes packed weights; None where there is none."""
    for key in KEYS:
        found = config.get(key)
        if isinstance(found, Mapping) and found:
            return found
    return None


def read_scheme(quantization: Mapping[str, Any]) -> Scheme:
    """The scheme that a quantization_config describes.

    Raises:
        UnsupportedModelError: another method, or a form of it that is not read here.
        CheckpointError: the configuration is broken.
    """
    method = str(quantization.get("quant_method") or ("gptq" if "bits" in quantization else "")).lower()
    if method == "gptq":
        return _gptq(quantization)
    if method == "awq":
        return _awq(quantization)
    if method in ("auto-round", "intel/auto-round"):
        return _auto_round(quantization)
    if method == "compressed-tensors" or (not method and "config_groups" in quantization):
        return _compressed(quantization)
    raise UnsupportedModelError(
        f"the checkpoint is quantized by '{method or 'an unnamed method'}'; what is read here: {KNOWN}", UNQUANTIZED
    )


@dataclass(frozen=True)
class GroupsOfWords:
    """GPTQ, AWQ and what AutoRound writes in their layouts."""

    method: str
    layout: Layout
    bits: int
    group_size: int
    minus_one: bool = False
    """Zero points are stored minus one."""
    overrides: tuple[tuple[re.Pattern[str], Mapping[str, Any]], ...] = ()
    """Module names → what is different for them; the first that matches counts."""

    markers: Sequence[str] = ("qweight",)
    required: Sequence[str] = gptq.REQUIRED
    optional: Sequence[str] = gptq.OPTIONAL

    def size(self, module: str, parts: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
        """See `Scheme`."""
        bits, _ = self._grid(module)
        return awq.size(module, parts) if self.layout == "awq" else gptq.size(module, parts, bits)

    def unpack(self, module: str, parts: Mapping[str, npt.NDArray[Any]]) -> Packed:
        """See `Scheme`."""
        bits, size = self._grid(module)
        if self.layout == "awq":
            return awq.unpack(module, parts, group_size=size)
        return gptq.unpack(module, parts, bits=bits, group_size=size, minus_one=self.minus_one)

    def _grid(self, module: str) -> tuple[int, int]:
        """Bits and group size."""
        own = next((values for pattern, values in self.overrides if pattern.match(module)), {})
        bits = _bits(own.get("bits", self.bits), module)
        size = _whole(own.get("group_size", self.group_size), "group_size")
        if self.layout == "awq" and bits != awq.BITS:
            raise UnsupportedModelError(f"'{module}' is packed by AWQ in {bits} bits, not {awq.BITS}", UNQUANTIZED)
        return bits, size


@dataclass(frozen=True)
class Group:
    """One entry of compressed-tensors' config_groups."""

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    symmetric: bool

    def rank(self, module: str) -> int:
        """How closely it names `module`: 0 by name, 1 by expression, 2 by class, _STRANGER not at all."""
        if module in self.targets:
            return 0
        if any(target.startswith("re:") and re.match(target[3:], module) for target in self.targets):
            return 1
        # Names of classes: which module is of which class is not known here, and its packed weight says that it is one.
        return 2 if any(target.isidentifier() for target in self.targets) else _STRANGER


@dataclass(frozen=True)
class Compressed:
    """compressed-tensors: groups of modules."""

    method: str
    groups: tuple[Group, ...]

    markers: Sequence[str] = (compressed.PACKED, "weight_scale")
    required: Sequence[str] = compressed.REQUIRED
    optional: Sequence[str] = (*compressed.OPTIONAL, compressed.PACKED, compressed.PLAIN)

    def size(self, module: str, parts: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int]:
        """See `Scheme`."""
        return compressed.size(module, parts, self._group(module).bits)

    def unpack(self, module: str, parts: Mapping[str, npt.NDArray[Any]]) -> Packed:
        """See `Scheme`."""
        group = self._group(module)
        return compressed.unpack(module, parts, bits=group.bits, group_size=group.group_size, symmetric=group.symmetric)

    def _group(self, module: str) -> Group:
        group = min(self.groups, key=lambda group: group.rank(module))
        if group.rank(module) == _STRANGER:
            raise CheckpointError(f"'{module}' is packed, and no group of the configuration names it", DAMAGED)
        return group


def _gptq(quantization: Mapping[str, Any]) -> Scheme:
    form = str(quantization.get("checkpoint_format") or quantization.get("format") or "gptq").lower()
    if quantization.get("is_marlin_format"):
        form = "marlin"
    if form not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(
            f"the GPTQ checkpoint is in the form '{form}', which is made for one kernel; gptq and gptq_v2 are read here",
            UNQUANTIZED,
        )
    method = "auto-round" if "auto-round" in str(quantization.get("quantizer", "")) else "gptq"
    return GroupsOfWords(
        method=method,
        layout="gptq",
        bits=_bits(quantization.get("bits"), "quantization_config"),
        group_size=_whole(quantization.get("group_size", -1), "group_size"),
        minus_one=form == "gptq",
        overrides=_dynamic(quantization.get("dynamic")),
    )


def _awq(quantization: Mapping[str, Any], method: str = "awq") -> Scheme:
    version = str(quantization.get("version") or quantization.get("format") or "gemm").lower()
    if version != "gemm":
        raise UnsupportedModelError(
            f"the AWQ checkpoint is in the form '{version}', which is made for one kernel; gemm is read here",
            UNQUANTIZED,
        )
    if quantization.get("zero_point") is False:
        raise UnsupportedModelError("AWQ checkpoints without zero points are not read here", UNQUANTIZED)
    return GroupsOfWords(
        method=method,
        layout="awq",
        bits=_bits(quantization.get("bits", quantization.get("w_bit")), "quantization_config"),
        group_size=_whole(quantization.get("group_size", quantization.get("q_group_size", -1)), "group_size"),
        required=awq.REQUIRED,
        optional=(),
    )


def _auto_round(quantization: Mapping[str, Any]) -> Scheme:
    backend = str(quantization.get("backend", ""))
    # Where nothing is said, transformers takes it for GPTQ's layout.
    packing = str(quantization.get("packing_format") or (backend if ":" in backend else "auto_round:gptq")).lower()
    kind = str(quantization.get("data_type", "int"))
    if not kind.startswith("int"):
        raise UnsupportedModelError(
            f"the AutoRound checkpoint holds weights of type '{kind}', and integers are read here", UNQUANTIZED
        )
    if any(other in packing for other in ("llm_compressor", "fp8", "mxfp", "nvfp")):
        raise UnsupportedModelError(f"AutoRound's packing '{packing}' is not read here", UNQUANTIZED)
    if "awq" in packing:
        return _awq({**quantization, "version": "gemm", "format": None}, "auto-round")
    extra = quantization.get("extra_config") or {}
    if not isinstance(extra, Mapping):
        raise CheckpointError("the quantization_config has a broken extra_config", DAMAGED)
    exact = {re.escape(name) + "$": values for name, values in extra.items()}
    return GroupsOfWords(
        method="auto-round",
        layout="gptq",
        bits=_bits(quantization.get("bits"), "quantization_config"),
        group_size=_whole(quantization.get("group_size", -1), "group_size"),
        # Its own form stores zero points as they are, those named after GPTQ store them minus one.
        minus_one="gptq" in packing,
        overrides=_dynamic(exact),
    )


def _compressed(quantization: Mapping[str, Any]) -> Scheme:
    form = str(quantization.get("format", "pack-quantized"))
    if form not in ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"):
        raise UnsupportedModelError(
            f"the compressed-tensors checkpoint is in the form '{form}'; pack-quantized and int-quantized are read here",
            UNQUANTIZED,
        )
    sparsity = quantization.get("sparsity_config") or {}
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedModelError(f"sparse weights ('{sparsity['format']}') are not read here", UNQUANTIZED)
    transforms = quantization.get("transform_config") or {}
    if isinstance(transforms, Mapping) and transforms.get("config_groups"):
        raise UnsupportedModelError("the checkpoint rotates its activations, which is not done here", UNQUANTIZED)
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError("the quantization_config has no config_groups", DAMAGED)
    return Compressed("compressed-tensors", tuple(_group(name, group) for name, group in groups.items()))


def _group(name: str, group: Any) -> Group:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    targets = group.get("targets") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or not isinstance(targets, list):
        raise CheckpointError(f"the group '{name}' of the quantization_config is broken", DAMAGED)
    kind, strategy = weights.get("type", "int"), weights.get("strategy") or "channel"
    bits = _bits(weights.get("num_bits"), f"group '{name}'")
    if kind != "int" or bits == 3 or strategy not in ("group", "channel", "tensor"):
        raise UnsupportedModelError(
            f"the group '{name}' has weights of type {kind}{bits} with a scale a {strategy}; "
            "integers of 2, 4 or 8 bits with a scale a group or channel are read here",
            UNQUANTIZED,
        )
    size = _whole(weights.get("group_size"), "group_size") if strategy == "group" else None
    return Group(tuple(map(str, targets)), bits, size, bool(weights.get("symmetric", True)))


def _dynamic(overrides: Any) -> tuple[tuple[re.Pattern[str], Mapping[str, Any]], ...]:
    """GPTQModel's `dynamic`: expressions over module names, "-:" before one takes a module out (it has no packed weight then)."""
    if not overrides:
        return ()
    if not isinstance(overrides, Mapping):
        raise CheckpointError("the quantization_config has broken overrides (dynamic)", DAMAGED)
    compiled = []
    for pattern, values in overrides.items():
        if pattern.startswith("-:"):
            continue
        try:
            compiled.append((re.compile(pattern.removeprefix("+:")), values if isinstance(values, Mapping) else {}))
        except re.error as error:
            raise CheckpointError(f"the override '{pattern}' of the quantization_config is broken: {error}") from error
    return tuple(compiled)


def _bits(value: Any, where: str) -> int:
    bits = _whole(value, "bits")
    if bits not in (2, 3, 4, 8):
        raise UnsupportedModelError(
            f"{where}: weights of {bits} bits are not read here, 2, 3, 4 and 8 are", UNQUANTIZED
        )
    return bits


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"the quantization_config has no usable {what}: {value!r}", DAMAGED)
    return value
