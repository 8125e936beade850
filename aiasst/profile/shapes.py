"""The shape of a decoder: the numbers that its size and its speed follow from. Knows no file, no machine and no format.

one layer   qkv [hidden, (heads + 2 kv_heads) head_dim] · o [heads head_dim, hidden]
            gate_up [hidden, 2 intermediate] (up alone where nothing gates) · down [intermediate, hidden]
once        embed [vocab, hidden], looked up · lm_head [hidden, vocab], multiplied for the last token of a sequence
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aiasst.artifacts.model_folder import Role

CACHE_BYTES = 4
"""Of a number in the cache: float32."""
_CACHE_MULTIPLE = 16
"""The cache pads heads to a multiple of so many numbers."""


@dataclass(frozen=True)
class MatrixShape:
    """One weight matrix of the graph, `count` times."""

    role: Role
    k: int
    n: int
    count: int

    @property
    def elements(self) -> int:
        """Weights in all of them."""
        return self.k * self.n * self.count


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama kind: attention with grouped keys and values, then two or three products."""

    model_type: str
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    tied_embedding: bool
    gated: bool = True
    """Whether the layer has a gate beside its up projection."""
    windows: tuple[int | None, ...] = ()
    """Sliding window of each layer, None = all tokens; empty: no layer has one."""

    @property
    def products(self) -> tuple[MatrixShape, ...]:
        """The matrices of all layers that each token is multiplied with."""
        heads = self.heads * self.head_dim
        up: Role = "gate_up" if self.gated else "up"
        return (
            MatrixShape("qkv", self.hidden_size, heads + 2 * self.kv_heads * self.head_dim, self.layers),
            MatrixShape("o", heads, self.hidden_size, self.layers),
            MatrixShape(up, self.hidden_size, (2 if self.gated else 1) * self.intermediate_size, self.layers),
            MatrixShape("down", self.intermediate_size, self.hidden_size, self.layers),
        )

    @property
    def head(self) -> MatrixShape:
        """What makes logits of a hidden state."""
        return MatrixShape("lm_head", self.hidden_size, self.vocab_size, 1)

    @property
    def stored(self) -> Iterator[MatrixShape]:
        """All matrices that take room on disk: a tied head is the embedding's own bytes."""
        yield from self.products
        yield self.head
        if not self.tied_embedding:
            yield MatrixShape("embed", self.hidden_size, self.vocab_size, 1)

    @property
    def small_parameters(self) -> int:
        """Norms, which stay in float32; biases, where a model has them, are of the same size."""
        return self.hidden_size * (2 * self.layers + 1)

    @property
    def parameters(self) -> int:
        """All of them; tied ones count once."""
        return sum(matrix.elements for matrix in self.stored) + self.small_parameters

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers, as the engine keeps them."""
        padded = -(-self.head_dim // _CACHE_MULTIPLE) * _CACHE_MULTIPLE
        return 2 * self.layers * self.kv_heads * padded * CACHE_BYTES

    def attended(self, past: float) -> float:
        """Multiplications of queries with keys and of weights with values for one token after `past` others, in all layers."""
        seen = past * self.layers
        if self.windows:
            seen = sum(past if window is None else min(past, window) for window in self.windows)
        return 2 * self.heads * self.head_dim * seen

    @property
    def activated(self) -> int:
        """Numbers that the activation of a layer goes over for one token, all of its nodes together."""
        return (2 if self.gated else 1) * self.intermediate_size
