"""Exports with transformers' own ONNX exporter: any model type it can trace. Knows its calling, no attention and no finish."""

from __future__ import annotations

import importlib.util
import inspect
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert.tracing import attention, operators, tidy, watching
from aiasst.errors import ExportError
from aiasst.progress import Progress, ProgressFn, silent

if TYPE_CHECKING:
    import torch

    from aiasst.convert.sources import Checkpoint


def available() -> tuple[bool, str]:
    """Whether a transformers with exporters is installed, and torch and onnxscript beside it."""
    for package in ("transformers", "torch", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            return False, f"{package} is not installed"
    if importlib.util.find_spec("transformers.exporters") is None:
        return False, "transformers has no exporters before 5.20"
    return True, "transformers and torch are installed"


def supports(checkpoint: Checkpoint, task: str) -> tuple[bool, str]:
    """Whether transformers has a model class for the model type and the task."""
    return watching.has_class(checkpoint, task)


def export(checkpoint: Checkpoint, task: str, progress: ProgressFn = silent) -> ir.Model:
    """Load, trace and tidy up.

    Raises:
        ExportError: the model cannot be loaded or traced, or its attention is not what the graph can express.
    """
    decoder = task == watching.DECODER_TASK
    progress(Progress("export", 0, 3, "load"))
    with watching.watched(checkpoint, task) as watched:
        progress(Progress("export", 1, 3, "trace"))
        traced = _trace(watched.model, _sample(watched.model, decoder))
    progress(Progress("export", 2, 3, "tidy up"))
    tidy.keep_first_output(traced.graph)
    tidy.tidy(traced)
    if decoder:
        attention.fuse(traced, watched.layers, watched.reach, progress)
    tidy.drop_dead(traced)
    progress(Progress("export", 3, 3, "done"))
    return traced


def _sample(model: Any, decoder: bool) -> dict[str, torch.Tensor]:
    """Inputs for the trace: int64 [2, 7] each."""
    import torch

    rows, length = 2, 7
    ids = torch.arange(3, 3 + rows * length).reshape(rows, length) % int(model.config.get_text_config().vocab_size)
    known = inspect.signature(model.forward).parameters
    if decoder:
        if attention.POSITION_IDS not in known:
            raise ExportError(
                "the model takes no position_ids, so that its positions cannot be followed",
                "try another exporter with --exporter",
            )
        return {
            signature.INPUT_IDS: ids,
            attention.POSITION_IDS: torch.arange(length).expand(rows, length).contiguous(),
        }
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    sample = {signature.INPUT_IDS: ids, signature.ATTENTION_MASK: mask}
    kinds: int = getattr(model.config, "type_vocab_size", None) or 0
    if signature.TOKEN_TYPE_IDS in known and kinds > 1:
        sample[signature.TOKEN_TYPE_IDS] = torch.zeros_like(ids)
    return sample


def _trace(model: Any, sample: dict[str, torch.Tensor]) -> ir.Model:
    import torch
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    # A model with a table of positions bounds the sequence; the tracer insists on being told.
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", min=2, max=longest)
    shapes = {name: {0: batch, 1: sequence} for name in sample}
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=operators.OPSET, optimize=False)
    flags = {"use_cache": False} if attention.POSITION_IDS in sample else {}
    program: ir.Model = OnnxExporter().export(model, {**sample, **flags}, config=config).program
    return program
