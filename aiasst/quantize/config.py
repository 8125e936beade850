"""QuantConfig: quantization in the words of other toolkits, turned into a recipe. Knows no graph.

What the words mean here, where the kernels of ONNX Runtime set the limits:

    weight_bits  scheme       becomes
    4            per-channel  int4, block 256: the largest block its kernels know
    4            per-block    int4, block_size (128)
    8            per-channel  w8a8: int8 weights a channel, uint8 activations a row
    8            per-block    int8, block_size (128)
    2            per-channel  int2, block 128: the largest block with a fast kernel
    2            per-block    int2, block_size (64)
    16           either       fp16 storage, float32 computation (activation_bits 32)

Embeddings and the head become int8 in blocks of 128 in all of them but the last: their errors cost more than their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiasst.artifacts.recipe import BLOCK_SIZES, INT2_BLOCK_SIZES, CacheFormat, FormatName, Recipe, Rule, WeightFormat
from aiasst.errors import UsageError
from aiasst.progress import ProgressFn, silent

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder

_NAMES: dict[int, FormatName] = {2: "int2", 4: "int4", 8: "int8", 16: "fp16"}
_CHANNEL_BLOCK = {2: 128, 4: 256}
_DEFAULT_BLOCK = {2: 64, 4: 128, 8: 128}
# At 8 bits and more, what calibration could earn is far below the rounding of the activations.
_CALIBRATED_BITS = (2, 4)
_HEAD = WeightFormat(format="int8", block_size=128)


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize a model folder; `apply` does it.

    >>> QuantConfig(weight_bits=4, activation_bits=8, scheme="per-channel").recipe().default.label
    'int4-b256'
    """

    weight_bits: int = 4
    activation_bits: int = 8
    """8 for integer weights: their kernels round activations to int8 as they go. 32 for 16-bit weights."""
    scheme: Literal["per-channel", "per-block"] = "per-channel"
    block_size: int | None = None
    """Weights that share a scale, for scheme per-block."""
    zero_point: bool = False
    """A zero point a block, for weights that lie askew around zero; not for 8 bits per channel nor 16 bits."""
    calibration_dataset: str | Path | None = None
    """Text (.txt, .jsonl) or token ids [sequences, length] (.npz) for algorithms that calibrate; None: our own texts."""
    algorithm: str | None = None
    """None: gptq for integers of 4 and 2 bits, which calibrates (where a model cannot be, mse takes its place), else mse."""
    cache: CacheFormat = "float"
    """How a decoder keeps keys and values of earlier tokens; int8 takes a quarter of the memory."""

    def __post_init__(self) -> None:
        """Raise UsageError where the values make no sense together."""
        if self.weight_bits not in _NAMES:
            raise UsageError(*bits_error(self.weight_bits))
        wanted = 32 if self.weight_bits == 16 else 8
        if self.activation_bits != wanted:
            raise UsageError(
                f"activation_bits {self.activation_bits} does not go with weight_bits {self.weight_bits}: the kernels "
                f"compute with {wanted}-bit activations there",
                f"set activation_bits={wanted}",
            )
        if self.scheme not in ("per-channel", "per-block"):
            raise UsageError(f"there is no scheme '{self.scheme}'", "set scheme to per-channel or per-block")
        if self.cache not in ("float", "int8"):
            raise UsageError(f"there is no cache of '{self.cache}'", "set cache to float or int8")
        self._check_blocks()

    def _check_blocks(self) -> None:
        if self.block_size is not None:
            if self.scheme == "per-channel" or self.weight_bits == 16:
                raise UsageError("block_size is for integers per block", "set scheme='per-block', or leave it out")
            allowed = INT2_BLOCK_SIZES if self.weight_bits == 2 else BLOCK_SIZES
            if self.block_size not in allowed:
                raise UsageError(
                    f"block_size {self.block_size} has no fast {self.weight_bits}-bit kernel",
                    f"set block_size to one of {', '.join(map(str, allowed))}",
                )
        if self.zero_point and (self.weight_bits == 16 or (self.weight_bits == 8 and self.scheme == "per-channel")):
            raise UsageError("this format is symmetric and has no zero points", "leave zero_point out")

    def recipe(self) -> Recipe:
        """The recipe that says the same."""
        default = self._format()
        rules = () if self.weight_bits == 16 else (Rule(roles=("embed", "lm_head"), use=_HEAD),)
        return Recipe(
            name=default.label,
            description=f"weight_bits={self.weight_bits}, activation_bits={self.activation_bits}, scheme={self.scheme}",
            algorithm=self.algorithm or ("gptq" if self.weight_bits in _CALIBRATED_BITS else "mse"),
            default=default,
            rules=rules,
            cache=self.cache,
        )

    def _format(self) -> WeightFormat:
        if self.weight_bits == 16:
            return WeightFormat(format="fp16")
        if self.weight_bits == 8 and self.scheme == "per-channel":
            return WeightFormat(format="w8a8")
        sizes = _CHANNEL_BLOCK if self.scheme == "per-channel" else _DEFAULT_BLOCK
        return WeightFormat(
            format=_NAMES[self.weight_bits],
            block_size=self.block_size or sizes[self.weight_bits],
            zero_point=self.zero_point,
        )

    def apply(
        self,
        folder: ModelFolder | Path | str,
        output: Path | str | None = None,
        *,
        force: bool = False,
        progress: ProgressFn = silent,
    ) -> ModelFolder:
        """Quantize `folder` to `output` (default: its name and the format's); raises what `quantize` raises."""
        from aiasst.quantize import quantize

        return quantize(
            folder, output, recipe=self.recipe(), calibration=self.calibration_dataset, force=force, progress=progress
        )


def bits_error(bits: int) -> tuple[str, str]:
    """Message and hint for a number of bits that no format has."""
    return (
        f"there is no {bits}-bit format: ONNX Runtime's kernels know 2, 4 and 8 bits (and 16 for storage)",
        "use 4 for size and speed, 8 for accuracy; a mean of 3 bits comes from a mixed recipe of 2 and 4",
    )
