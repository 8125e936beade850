"""Puts the sliding window of each layer onto its attention node. Knows the node's attribute, not where the windows come from.

`local_window_size` W lets a token attend to itself and the W - 1 before it, which is what `sliding_window` means in
the checkpoints' configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from aiasst.convert.finish.anatomy import GQA, attentions
from aiasst.errors import ExportError


def apply(graph: ir.Graph, windows: Sequence[int | None]) -> bool:
    """Set (or take away) the window of every layer; `windows` has one entry a layer, None = full attention."""
    nodes = [node for node in attentions(graph) if node.op_type == GQA]
    if len(nodes) != len(windows):
        raise ExportError(
            f"the configuration has {len(windows)} layers, the exported graph {len(nodes)} attention nodes",
            "try another exporter with --exporter",
        )
    modified = False
    for node, window in zip(nodes, windows, strict=True):
        before = node.attributes.get("local_window_size")
        wanted = window if window is not None else -1
        if (before.as_int() if before is not None else -1) != wanted:
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", wanted)
            modified = True
    return modified
