"""Exports with transformers' own ONNX exporter: any model type it can trace. Knows torch, no finish.

The model is traced once, without a cache, with an attention implementation of ours: for a decoder it leaves one marker
node per layer (see `convert.attention`) and no mask at all, for an encoder the standard Attention operator with its
mask. What a layer's attention computes (scale, soft cap, window) is not read from the configuration but seen: a first
run on four tokens records what the model hands to its attention, and the mask function is asked which tokens it shows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.convert import attention, tidy
from aiasst.convert.architecture import load_config
from aiasst.convert.attention import LayerAttention, Positions
from aiasst.errors import ExportError
from aiasst.progress import Progress, ProgressFn, silent

if TYPE_CHECKING:
    import torch

    from aiasst.convert.sources import Checkpoint

CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""Canonical task to the class that loads a checkpoint for it."""
_IMPLEMENTATION = "aiasst"
_HINT = "try another exporter with --exporter"
# What transformers, torch.export and torch.onnx raise on a model they cannot load or trace: they share no base class.
_FOREIGN = (
    RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError, NotImplementedError,
    ImportError, OSError,
)  # fmt: skip


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
    import transformers

    name = checkpoint.model_type
    if task not in CLASSES:
        return False, f"transformers' exporter is not wired for {task}"
    if name not in transformers.CONFIG_MAPPING:
        return False, f"transformers does not know the model type '{name}'"
    config = transformers.CONFIG_MAPPING[name]
    if config not in getattr(transformers, CLASSES[task])._model_mapping:
        return False, f"transformers has no class of '{name}' for {task}"
    if getattr(config, "is_encoder_decoder", False) or checkpoint.config.get("is_encoder_decoder"):
        return False, f"'{name}' is an encoder with a decoder, not one of them"
    return True, f"transformers knows '{name}' for {task}"


def export(checkpoint: Checkpoint, task: str, progress: ProgressFn = silent) -> ir.Model:
    """Load, trace and tidy up.

    Raises:
        ExportError: the model cannot be loaded or traced, or its attention is not what the graph can express.
    """
    progress(Progress("export", 0, 3, "load"))
    decoder = task == "text-generation"
    watch = _Watch(decoder)
    with _quiet(), _register(watch):
        try:
            model = _load(checkpoint, task)
            if decoder:
                reach = _reach(load_config(checkpoint))
                _hold_frequencies(model)
                _observe(model, watch, reach.context)
            progress(Progress("export", 1, 3, "trace"))
            traced = _trace(model, _sample(model, decoder))
        except _FOREIGN as error:
            reason = _first_line(error)
            if isinstance(error, KeyError) and error.args == (_IMPLEMENTATION,):
                reason = "its attention is written into the layer and cannot be replaced"
            elif _Shown.__name__ in str(error):
                reason = "it does something of its own with the attention mask"
            raise ExportError(
                f"transformers could not export model type '{checkpoint.model_type}': {reason}", _HINT
            ) from error
        progress(Progress("export", 2, 3, "tidy up"))
        tidy.keep_first_output(traced.graph)
        tidy.tidy(traced)
        if decoder:
            attention.fuse(traced, watch.layers, reach, progress)
    tidy.drop_dead(traced)
    progress(Progress("export", 3, 3, "done"))
    return traced


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer prints, warns and logs; the program's stdout and stderr are ours."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _load(checkpoint: Checkpoint, task: str) -> Any:
    """The torch model in float32 with our attention. Raises ExportError where the checkpoint lacks weights of it."""
    import torch
    import transformers

    from aiasst.convert import modules

    loader = getattr(transformers, CLASSES[task])
    model, info = loader.from_pretrained(
        str(checkpoint.path),
        dtype=torch.float32,
        attn_implementation=_IMPLEMENTATION,
        local_files_only=True,
        trust_remote_code=checkpoint.trust_remote_code,
        output_loading_info=True,
    )
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ExportError(
            f"the checkpoint lacks {len(missing)} weights of the model, {missing[0]} for one",
            "download the checkpoint again, or choose the task it was trained for with --task",
        )
    model = model.eval()
    modules.simplify(model)
    return model


def _reach(config: Any) -> Positions:
    """Positions the rotary tables cover, and where longrope changes from its short to its long frequencies."""
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ExportError(
            "the configuration names no max_position_embeddings: positions are not rotary or learned", _HINT
        )
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    switches = {
        int(each["original_max_position_embeddings"]) for each in sets if each.get("rope_type") == "longrope"
    }  # fmt: skip
    if len(switches) > 1:
        raise ExportError("layers change their rotary frequencies at different lengths", _HINT)
    switch = min(switches, default=context)
    return Positions(context, switch if switch < context else None)


def _hold_frequencies(model: Any) -> None:
    """Dynamic NTK scaling changes the frequencies beyond the context only, where these graphs end: trace it without."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.rope_type = "default"


@dataclass
class _Shown:
    """Stands where a mask would be: the function that says which tokens a token sees."""

    function: Callable[..., torch.Tensor]


@dataclass
class _Watch:
    """Our attention implementation: records what each layer hands over, and marks the place in the trace."""

    decoder: bool
    context: int = 0
    layers: list[LayerAttention] = field(default_factory=list)

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface; [batch, heads, sequence, head_dim] → [batch, sequence, heads, head_dim]."""
        import torch

        if not self.decoder:
            return _standard_attention(module, query, key, value, attention_mask, **rest), None
        shape = [query.shape[0], query.shape[2], query.shape[1], value.shape[3]]
        if not torch.compiler.is_exporting():
            self._record(query, key, value, attention_mask, **rest)
            return query.new_zeros(shape), None
        name = f"{attention.MARKER_DOMAIN}::{attention.MARKER}"
        return torch.onnx.ops.symbolic(name, [query, key, value], dtype=query.dtype, shape=shape, version=1), None

    def mask(self, **arguments: Any) -> Any:
        """transformers' mask interface: for a decoder no mask, only the function that would make it."""
        if self.decoder:
            return _Shown(arguments["mask_function"])
        from transformers.masking_utils import sdpa_mask

        always = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return sdpa_mask(**{**arguments, **always})

    def _record(self, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> None:
        where = f"layer {len(self.layers)}"
        size = int(query.shape[3])
        scale, softcap = rest.pop("scaling", None), rest.pop("softcap", None)
        strange = [name for name, given in rest.items() if _is_tensor(given) and name != "position_ids"]
        if strange:
            raise ExportError(f"{where}: the attention takes '{strange[0]}', which is not understood", _HINT)
        if key.shape[3] != size or value.shape[3] != size or key.shape[1] != value.shape[1]:
            raise ExportError(f"{where}: query, key and value heads differ in size", _HINT)
        if not isinstance(mask, _Shown):
            raise ExportError(f"{where}: the model makes its attention mask itself", _HINT)
        self.layers.append(
            LayerAttention(
                heads=int(query.shape[1]),
                kv_heads=int(key.shape[1]),
                head_dim=size,
                scale=float(scale) if scale is not None else size**-0.5,
                softcap=float(softcap or 0.0),
                window=_window(mask.function, self.context, where),
            )
        )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _window(shows: Callable[..., torch.Tensor], context: int, where: str) -> int | None:
    """How many tokens, itself included, the mask function shows to a token; None = all before it.

    Raises:
        ExportError: it shows something else than the last so many tokens.
    """
    import torch

    keys = torch.arange(context + 8)
    zero, last = torch.zeros((), dtype=torch.long), context + 5
    window = int(shows(zero, zero, torch.tensor(last), keys).expand(len(keys)).sum())
    for place in (last, last - 1, context // 2, min(3, context), 0):
        shown = shows(zero, zero, torch.tensor(place), keys).expand(len(keys))
        if not torch.equal(shown, (keys <= place) & (keys > place - window)):
            raise ExportError(f"{where}: the attention mask is neither causal nor a sliding window", _HINT)
    return window if window < context else None


def _standard_attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **rest: Any
) -> torch.Tensor:
    """The standard Attention operator; [batch, sequence, heads, head_dim]."""
    import torch

    attributes: dict[str, Any] = {"scale": float(scaling if scaling is not None else query.shape[3] ** -0.5)}
    if rest.get("softcap"):
        attributes["softcap"] = float(rest["softcap"])
    if mask is None and rest.get("is_causal", getattr(module, "is_causal", False)):
        attributes["is_causal"] = 1
    inputs = [query, key, value, *([mask] if mask is not None else [])]
    shape = [*query.shape[:3], value.shape[3]]
    context = torch.onnx.ops.symbolic("Attention", inputs, attributes, dtype=query.dtype, shape=shape, version=23)
    return context.transpose(1, 2)


@contextlib.contextmanager
def _register(watch: _Watch) -> Iterator[None]:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_IMPLEMENTATION, watch.attend)
    AttentionMaskInterface.register(_IMPLEMENTATION, watch.mask)
    yield


def _observe(model: Any, watch: _Watch, context: int) -> None:
    """Run four tokens through the model so that `watch` sees every layer's attention."""
    import torch

    watch.context = context
    ids = torch.zeros((1, 4), dtype=torch.long)
    with torch.no_grad():
        model(input_ids=ids, position_ids=torch.arange(4)[None], use_cache=False)
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    if len(watch.layers) != expected:
        raise ExportError(f"{len(watch.layers)} of {expected} layers have an attention that can be replaced", _HINT)


def _sample(model: Any, decoder: bool) -> dict[str, torch.Tensor]:
    """Inputs for the trace: int64 [2, 7] each."""
    import torch

    rows, length = 2, 7
    ids = torch.arange(3, 3 + rows * length).reshape(rows, length) % int(model.config.get_text_config().vocab_size)
    known = inspect.signature(model.forward).parameters
    if decoder:
        if attention.POSITION_IDS not in known:
            raise ExportError("the model takes no position_ids, so that its positions cannot be followed", _HINT)
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
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=23, optimize=False)
    flags = {"use_cache": False} if attention.POSITION_IDS in sample else {}
    program: ir.Model = OnnxExporter().export(model, {**sample, **flags}, config=config).program
    return program
