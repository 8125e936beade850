"""The graph finish: whatever exporter made it, a graph leaves here in one form. Knows the order of the passes, nothing else.

lift        constants become initializers, function bodies go
interface   inputs and outputs of artifacts.signature
positions   lengths and positions derived once from the attention mask
tied        a tied embedding is stored once
folding     what depends on weights alone is computed now
windows     the sliding window of each layer
packing     Q, K, V in one product; gate and up in one product
heads       head sizes GroupQueryAttention takes
last_token  logits for the last token of each row unless asked for all
naming      every weight named by what it is
tidy        what is unused goes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from aiasst.convert.finish import (
    clean,
    folding,
    heads,
    interface,
    last_token,
    naming,
    packing,
    positions,
    tied,
    windows,
)
from aiasst.convert.finish.graph import remove_unused
from aiasst.convert.finish.naming import Named

IR_VERSION = 11
"""Of the file format: what ONNX Runtime 1.31 and its tools read, and opset 24 needs."""


@dataclass(frozen=True)
class Finished:
    """A finished graph and what its weights are."""

    model: ir.Model
    weights: tuple[Named, ...]


def finish_decoder(model: ir.Model, *, layer_windows: Sequence[int | None], tied_embedding: bool) -> Finished:
    """Bring an exported causal decoder into the form of the house; `model` is changed in place.

    Args:
        model: One GroupQueryAttention a layer, in layer order, with cache inputs and outputs.
        layer_windows: Sliding window of each layer, None = full attention.
        tied_embedding: Whether the configuration says that head and embedding are one matrix.

    Raises:
        ExportError: the graph is not what a decoder export must be.
    """
    graph = model.graph
    clean.lift(model)
    interface.decoder(graph)
    lengths = positions.apply(graph)
    tied.apply(graph, tied=tied_embedding)
    folding.apply(graph)
    windows.apply(graph, layer_windows)
    remove_unused(graph, keep=(lengths.rows, lengths.sequence))
    packing.qkv(graph)
    packing.gate_up(graph)
    heads.apply(graph)
    last_token.apply(graph, lengths)
    return _named(model, decoder=True)


def finish_encoder(model: ir.Model) -> Finished:
    """Bring an exported encoder into the form of the house; `model` is changed in place.

    Raises:
        ExportError: the graph has inputs that nobody would feed.
    """
    graph = model.graph
    clean.lift(model)
    interface.encoder(graph)
    folding.apply(graph)
    remove_unused(graph)
    packing.qkv(graph)
    packing.gate_up(graph)
    return _named(model, decoder=False)


def _named(model: ir.Model, *, decoder: bool) -> Finished:
    remove_unused(model.graph)
    model.graph.sort()
    weights = naming.apply(model.graph, decoder=decoder)
    clean.tidy(model)
    model.ir_version = IR_VERSION
    return Finished(model, tuple(weights))
