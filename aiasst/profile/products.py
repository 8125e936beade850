"""The micro-models that products are measured with: a chain of equal products in one weight format. Measures nothing.

Weights are random: kernels take the same time whatever the values, as long as these stay finite, so signs of the scales are
random too and the variance of the activations stays near one along the chain. Links of one shape have the same numbers, each
link turned by one place: drawing them anew took longer than measuring, and of equal weights ONNX Runtime keeps one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aiasst.runtime.onnx_writer import Array, Node, Value, model_bytes

SIZE = 2048
"""The hidden size of a model of one milliard parameters."""
INPUT, OUTPUT = "x0", "y"
_MICROSOFT = "com.microsoft"
_OPSETS = {"": 21, _MICROSOFT: 1}


@dataclass(frozen=True)
class Link:
    """One product of the chain, and what it takes."""

    nodes: tuple[Node, ...]
    initializers: Mapping[str, Array]


class Numbers:
    """Random arrays, drawn once for each shape and given out turned by one place more each time."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._drawn: dict[tuple[str, tuple[int, ...]], npt.NDArray[Any]] = {}
        self._given = 0

    def normal(self, *shape: int) -> npt.NDArray[np.float32]:
        """Standard normal."""
        return self._turned("normal", shape, lambda count: self._random.standard_normal(count, np.float32))

    def bytes(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Uniform."""
        return self._turned("bytes", shape, lambda count: np.frombuffer(self._random.bytes(count), np.uint8))

    def signs(self, *shape: int) -> npt.NDArray[np.float32]:
        """1 or -1."""
        return self._turned(
            "signs", shape, lambda count: self._random.integers(0, 2, count, np.int8).astype(np.float32) * 2 - 1
        )

    def _turned(self, kind: str, shape: tuple[int, ...], draw: Callable[[int], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if (kind, shape) not in self._drawn:
            self._drawn[kind, shape] = draw(int(np.prod(shape)))
        self._given += 1
        return np.roll(self._drawn[kind, shape], self._given).reshape(shape)


LinkFn = Callable[[Numbers, str, str, str, int, int], Link]
"""(random numbers, name of the weight, input, output, k, n) → the nodes from input to output."""


@dataclass(frozen=True)
class Form:
    """A weight format as the runtime computes it."""

    label: str
    """As the weight table of a model folder names it."""
    bits: int
    """Of a weight, without its scales."""
    link: LinkFn

    def link_bytes(self, k: int = SIZE, n: int = SIZE) -> int:
        """What the weight of one product takes, without its scales."""
        return k * n * self.bits // 8


def chain(form: Form, links: int, k: int = SIZE, n: int = SIZE, seed: int = 0) -> bytes:
    """An ONNX model of `links` products after each other: float32 [rows, k] → the same.

    Where k is not n every second product goes back from n to k, so that `links` must be even.

    Raises:
        ValueError: it is not.
    """
    if k != n and links % 2:
        raise ValueError(f"{links} products from {k} to {n} and back end at {n}")
    random = Numbers(seed)
    made = []
    for i in range(links):
        inner, outer = (n, k) if i % 2 else (k, n)
        made.append(form.link(random, f"w{i}", f"x{i}", OUTPUT if i == links - 1 else f"x{i + 1}", inner, outer))
    nodes = [node for link in made for node in link.nodes]
    initializers = {name: array for link in made for name, array in link.initializers.items()} | _CONSTANTS
    used = {name for node in nodes for name in node.inputs}
    shape = ("rows", k)
    return model_bytes(
        nodes,
        [Value(INPUT, np.float32, shape)],
        [Value(OUTPUT, np.float32, shape)],
        {name: array for name, array in initializers.items() if name in used},
        _OPSETS,
    )


_CONSTANTS: dict[str, npt.NDArray[Any]] = {
    "last_axis": np.array([-1], np.int64),
    "column_axis": np.array([1], np.int64),
    "steps": np.array(127, np.float32),
    "one": np.array(1, np.float32),
    "middle": np.array(128, np.uint8),
}


def _fp32(random: Numbers, weight: str, x: str, y: str, k: int, n: int) -> Link:
    values = random.normal(k, n) / np.float32(k**0.5)
    return Link((Node("MatMul", [x, weight], [y]),), {weight: values})


def _blockwise(bits: int, block: int) -> Form:
    """MatMulNBits: unsigned integers around the middle of their range, a scale a block, activations in int8."""
    spread = ((2 ** (2 * bits) - 1) / 12) ** 0.5  # standard deviation of the integers

    def link(random: Numbers, weight: str, x: str, y: str, k: int, n: int) -> Link:
        blocks = k // block
        packed = random.bytes(n, blocks, block * bits // 8)
        scales = random.signs(n, blocks) / np.float32(spread * k**0.5)
        attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4}
        node = Node("MatMulNBits", [x, weight, f"{weight}.scale"], [y], attributes, _MICROSOFT)
        return Link((node,), {weight: packed, f"{weight}.scale": scales})

    return Form(f"int{bits}-b{block}", bits, link)


def _w8a8(random: Numbers, weight: str, x: str, y: str, k: int, n: int) -> Link:
    """Int8 weights with a scale a channel, uint8 activations with a scale a row, from stock operators."""
    values = random.bytes(k, n).view(np.int8)
    scales = random.signs(n) / np.float32(74 * k**0.5)
    name = [f"{weight}.{part}" for part in ("abs", "peak", "rows", "count", "zero", "q", "product", "column")]
    magnitude, peak, rows, count, zero, q, product, column = name
    nodes = (
        Node("Abs", [x], [magnitude]),
        Node("ReduceMax", [magnitude, "last_axis"], [peak], {"keepdims": 0}),
        Node("Div", [peak, "steps"], [rows]),
        Node("Shape", [rows], [count]),
        Node("ConstantOfShape", [count], [zero], {"value": np.array([128], np.uint8)}),
        Node("QuantizeLinear", [x, rows, zero], [q], {"axis": 0}),
        Node("MatMulIntegerToFloat", [q, weight, "one", f"{weight}.scale", "middle"], [product], {}, _MICROSOFT),
        Node("Unsqueeze", [rows, "column_axis"], [column]),
        Node("Mul", [product, column], [y]),
    )
    return Link(nodes, {weight: values, f"{weight}.scale": scales})


FORMS: tuple[Form, ...] = (
    _blockwise(4, 128),
    # Embedding and head are in it, whatever the layers are in: without it no model's speed is predicted.
    _blockwise(8, 128),
    Form("w8a8", 8, _w8a8),
    _blockwise(4, 256),
    _blockwise(4, 64),
    _blockwise(2, 64),
    _blockwise(4, 32),
    Form("fp32", 32, _fp32),
)
"""In the order of their weight for decisions, since the last ones are left out where time is short.

fp16 is not among them: ONNX Runtime widens such weights to float32 when a session is opened, and multiplies those."""
