"""The manifest's rows for the weights of a finished graph, and the graph's own numbers. Knows no exporter."""

from __future__ import annotations

import onnx_ir as ir

from aiasst.artifacts.model_folder import Shape, Weight
from aiasst.convert.architecture import Architecture
from aiasst.convert.finish import Finished
from aiasst.convert.finish.anatomy import GQA, attentions
from aiasst.convert.finish.graph import weight_tensor
from aiasst.convert.finish.tensors import shape_of

FORMAT = "fp32"


def weights(finished: Finished) -> dict[str, Weight]:
    """Name → row. A tied head appears with no bytes of its own and the name of the embedding."""
    rows: dict[str, Weight] = {}
    for named in finished.weights:
        tensor = weight_tensor(finished.model.graph.initializers[named.name])
        rows[named.name] = Weight(
            role=named.role, layer=named.layer, shape=shape_of(tensor), format=FORMAT, bytes=tensor.nbytes
        )  # fmt: skip
    head = next((node for node in finished.model.graph if node.name == "lm_head"), None)
    if head is not None and "lm_head.weight" not in rows and head.inputs[1] is not None:
        shared = head.inputs[1].name
        table = rows.get(shared or "")
        if shared is not None and table is not None:
            rows["lm_head.weight"] = Weight(
                role="lm_head", layer=None, shape=table.shape[::-1], format=FORMAT, bytes=0, shared_with=shared
            )  # fmt: skip
    return rows


def shape(model: ir.Model, architecture: Architecture) -> Shape:
    """The numbers of the manifest: the cache from the graph (heads may have been widened), the rest from the configuration."""
    head_dim = architecture.hidden_size // architecture.heads
    kv_heads = architecture.kv_heads
    caching = [node for node in attentions(model.graph) if node.op_type == GQA]
    if caching:
        kv_heads = caching[0].attributes["kv_num_heads"].as_int()
        cache = caching[0].inputs[3]
        size = cache.shape[-1] if cache is not None and cache.shape is not None else None
        head_dim = size if isinstance(size, int) else head_dim
    return Shape(
        model_type=architecture.model_type,
        layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        vocab_size=architecture.vocab_size,
        context_length=architecture.context_length,
        heads=architecture.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
