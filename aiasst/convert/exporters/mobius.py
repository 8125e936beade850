"""Exports with mobius-onnx: graphs written for ONNX Runtime from the start, in seconds. Knows its quirks, no finish.

mobius builds a graph from config.json by model type and then applies the safetensors, memory-mapped and cast lazily.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert.architecture import load_config
from aiasst.convert.finish.anatomy import GQA
from aiasst.convert.finish.graph import Builder, add_weight
from aiasst.convert.finish.tensors import shape_of
from aiasst.errors import ExportError
from aiasst.progress import Progress, ProgressFn, silent

if TYPE_CHECKING:
    from aiasst.convert.sources import Checkpoint

TASKS = ("text-generation", "feature-extraction")
# Seen on tiny random checkpoints with mobius-onnx 0.1: padding or positions are wrong, or weights go to the wrong places.
_WRONG_ENCODERS = frozenset(
    {"roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "deberta-v2", "electra", "modernbert"}
)


def available() -> tuple[bool, str]:
    """Whether mobius-onnx is installed."""
    if importlib.util.find_spec("mobius") is None:
        return False, "mobius-onnx is not installed"
    return True, "mobius-onnx is installed"


def supports(checkpoint: Checkpoint, task: str) -> tuple[bool, str]:
    """Whether mobius has a graph for the model type and the task."""
    from mobius import registry

    name = checkpoint.model_type
    if name not in registry:
        return False, f"mobius does not know the model type '{name}'"
    kind = registry.get_task(name) or "text-generation"
    if task not in TASKS or kind != task:
        return False, f"mobius exports '{name}' for {kind}, not for {task}"
    if name in _WRONG_ENCODERS:
        return False, f"mobius' graph of '{name}' is not what the original computes"
    return True, f"mobius knows '{name}' for {task}"


def export(checkpoint: Checkpoint, task: str, progress: ProgressFn = silent) -> ir.Model:
    """Build the graph and bind the weights.

    Raises:
        ExportError: mobius failed, or made something that is no single graph.
    """
    import mobius

    progress(Progress("export", 0, 1, "mobius"))
    try:
        with _quiet():
            package = mobius.build(str(checkpoint.path), task=task, dtype="f32", execution_provider="cpu")
    # mobius documents no errors of its own: these are the ones its configuration and weight code raises.
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, OSError) as error:
        raise ExportError(
            f"mobius could not export model type '{checkpoint.model_type}': {type(error).__name__}: {error}",
            "try --exporter transformers",
        ) from error
    if list(package) != ["model"]:
        raise ExportError(
            f"mobius makes {len(package)} graphs of '{checkpoint.model_type}' ({', '.join(package)}), not one",
            "choose a text-only checkpoint",
        )
    model: ir.Model = package["model"]
    _check_weights(model)
    if task == "text-generation":
        _drop_unknown_attributes(model)
        _correct_rotary(model, load_config(checkpoint))
    else:
        _correct_padding_mask(model.graph)
    progress(Progress("export", 1, 1, "mobius"))
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """mobius prints and draws bars; the program's stdout and stderr are ours."""
    logger = logging.getLogger("mobius")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _check_weights(model: ir.Model) -> None:
    missing = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    if missing:
        raise ExportError(
            f"the checkpoint lacks {len(missing)} weights the graph needs, {missing[0]} for one",
            "download the checkpoint again, or try --exporter transformers",
        )


def _drop_unknown_attributes(model: ir.Model) -> None:
    """Take away an attribute the operator's schema lacks: how much of a head rotates follows from the width of its caches."""
    for node in model.graph:
        if node.op_type == GQA:
            node.attributes.pop("rotary_embedding_dim", None)


def _correct_rotary(model: ir.Model, config: Any) -> None:
    """Give models with one rotary base a layer type (Gemma 3) the bases their configuration has.

    mobius reads the attributes of older configurations (rope_theta, rope_local_base_freq), which transformers 5 keeps
    in rope_parameters by layer type, and falls back to its defaults.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None) or []
    if not kinds or not all(isinstance(parameters.get(kind), dict) for kind in set(kinds)):
        return
    nodes = [node for node in model.graph if node.op_type == GQA]
    corrected: dict[str, tuple[ir.Value, ir.Value]] = {}
    for node, kind in zip(nodes, kinds, strict=True):
        old = node.inputs[7]
        if old is None or old.const_value is None:
            continue
        if kind not in corrected:
            rows = shape_of(old.const_value)[0]
            corrected[kind] = _rotary_caches(model.graph, config, kind, rows)
        node.replace_input_with(7, corrected[kind][0])
        node.replace_input_with(8, corrected[kind][1])


def _correct_padding_mask(graph: ir.Graph) -> None:
    """Let the attention of an encoder leave out padding.

    mobius hands the mask int64 [batch, sequence] to Attention, which reads it as numbers [query, key] to be added to
    the scores. The operator wants truth values [batch, heads, query, key].
    """
    mask = next((value for value in graph.inputs if value.name == signature.ATTENTION_MASK), None)
    nodes = [node for node in graph if node.op_type == "Attention" and len(node.inputs) > 3 and node.inputs[3] is mask]
    if mask is None or not nodes:
        return
    build = Builder(graph, "padding")
    kept = build.op("Cast", [mask], to=ir.DataType.BOOL)
    kept = build.op("Unsqueeze", [kept, build.constant([1, 2])])
    # The CPU kernel broadcasts over heads, not over queries.
    length = build.op("Shape", [mask], start=1, end=2)
    one = build.constant([1])
    kept = build.op("Expand", [kept, build.op("Concat", [one, one, length, length], axis=0)], name="padding/mask")
    build.place_first()
    for node in nodes:
        node.replace_input_with(3, kept)


def _rotary_caches(graph: ir.Graph, config: Any, kind: str, rows: int) -> tuple[ir.Value, ir.Value]:
    """cos and sin [rows, rotary half] of layers of `kind`, by transformers' own formulas."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters[kind]
    if parameters.get("rope_type", "default") == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = int(size * parameters.get("partial_rotary_factor", 1.0))
        frequencies = 1.0 / parameters["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        factor = 1.0
    else:
        compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
        frequencies, factor = compute(config, torch.device("cpu"), layer_type=kind)
    angles = torch.outer(torch.arange(rows, dtype=torch.float32), frequencies)
    cos, sin = (angles.cos() * factor).numpy(), (angles.sin() * factor).numpy()
    return (
        add_weight(graph, f"rotary.{kind}.cos", ir.Tensor(cos)),
        add_weight(graph, f"rotary.{kind}.sin", ir.Tensor(sin)),
    )
