"""Loads a torch model so that its trace shows its attention. Knows transformers' interfaces, no architecture.

The model gets an attention implementation of ours: for a decoder it leaves one marker node per layer in the trace (see
`attention`) and no mask at all, for an encoder the standard Attention operator with its mask. What a layer's attention
computes (scale, soft cap, window) is not read from the configuration but seen: a first run on four tokens records what
the model hands to its attention, and the mask function is asked which tokens it shows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiasst.convert.architecture import load_config
from aiasst.convert.tracing import attention, operators
from aiasst.convert.tracing.attention import LayerAttention, Positions
from aiasst.errors import ExportError

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
DECODER_TASK = "text-generation"
_BODY = "feature-extraction"
_IMPLEMENTATION = "aiasst"
_HINT = "try another exporter with --exporter"
# What transformers, torch and torch.onnx raise on a model they cannot load or trace: they share no base class.
_FOREIGN = (
    RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError, NotImplementedError,
    ImportError, OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A model ready to be traced."""

    model: Any
    """In float32, with our attention, which is registered as long as `watched` lasts."""
    layers: tuple[LayerAttention, ...]
    """What the attention of each layer computes; empty for an encoder."""
    reach: Positions
    """How far a decoder's positions go."""


def has_class(checkpoint: Checkpoint, task: str) -> tuple[bool, str]:
    """Whether transformers has a model class for the model type and the task, and why (not)."""
    import transformers

    name = checkpoint.model_type
    if task not in CLASSES:
        return False, f"no model class is known for {task}"
    if name not in transformers.CONFIG_MAPPING:
        return False, f"transformers does not know the model type '{name}'"
    config = transformers.CONFIG_MAPPING[name]
    if config not in getattr(transformers, CLASSES[task])._model_mapping:
        return False, f"transformers has no class of '{name}' for {task}"
    if getattr(config, "is_encoder_decoder", False) or checkpoint.config.get("is_encoder_decoder"):
        return False, f"'{name}' is an encoder with a decoder, not one of them"
    return True, f"transformers knows '{name}' for {task}"


@contextlib.contextmanager
def watched(checkpoint: Checkpoint, task: str) -> Iterator[Watched]:
    """Load the model and see its attention; what transformers and torch print or raise inside is ours.

    Raises:
        ExportError: it cannot be loaded, or (raised by the body) traced; or its attention cannot be seen or replaced.
    """
    decoder = task == DECODER_TASK
    watch = _Watch(decoder)
    with _quiet(), _translated(checkpoint):
        _register(watch)
        model = _load(checkpoint, task)
        reach = Positions(0)
        if decoder:
            reach = _reach(load_config(checkpoint))
            _hold_frequencies(model)
            _observe(model, watch, reach.context)
        else:
            _settle(model, watch)
        yield Watched(model, tuple(watch.layers), reach)


@contextlib.contextmanager
def _translated(checkpoint: Checkpoint) -> Iterator[None]:
    try:
        yield
    except _FOREIGN as error:
        reason = _first_line(error)
        if isinstance(error, KeyError) and error.args == (_IMPLEMENTATION,):
            reason = "its attention is written into the layer and cannot be replaced"
        elif _Shown.__name__ in str(error):
            reason = "it does something of its own with the attention mask"
        raise ExportError(f"model type '{checkpoint.model_type}' cannot be traced: {reason}", _HINT) from error


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
    from aiasst.convert.tracing import biased, modules

    try:
        model, info = _from_pretrained(checkpoint, task, _IMPLEMENTATION)
    except KeyError as error:
        if task == DECODER_TASK or error.args != (_IMPLEMENTATION,):
            raise
        # An encoder needs no cache: its attention may stay as it is written.
        model, info = _from_pretrained(checkpoint, task, "eager")
    _refuse_made_up(model, task, info["missing_keys"])
    model = model.eval()
    modules.simplify(model)
    biased.replace(model)
    return model


def _refuse_made_up(model: Any, task: str, missing: Iterable[str]) -> None:
    """Raise ExportError where weights that the answer depends on are not in the checkpoint: transformers draws them at random."""
    # The hidden states of a bare body do not go through its pooler; a classifier's answer may.
    lacking = sorted(name for name in missing if task != _BODY or "pooler" not in name)
    if not lacking:
        return
    body = f"{model.base_model_prefix}."
    if task != _BODY and not any(name.startswith(body) and "pooler" not in name for name in lacking):
        raise ExportError(
            f"the checkpoint has no head for {task} ({lacking[0]} is missing): its weights would be random numbers",
            "give a checkpoint that was trained for this, or take the body alone: --task feature-extraction",
        )
    raise ExportError(
        f"the checkpoint lacks {len(lacking)} weights of the model, {lacking[0]} for one",
        "download the checkpoint again, or choose the task it was trained for with --task",
    )


def _from_pretrained(checkpoint: Checkpoint, task: str, implementation: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    loaded: tuple[Any, dict[str, Any]] = getattr(transformers, CLASSES[task]).from_pretrained(
        str(checkpoint.path),
        dtype=torch.float32,
        attn_implementation=implementation,
        local_files_only=True,
        trust_remote_code=checkpoint.trust_remote_code,
        output_loading_info=True,
    )
    return loaded


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
    reached: bool = False
    """Whether the model ever asked for attention here."""

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface; [batch, heads, sequence, head_dim] → [batch, sequence, heads, head_dim]."""
        self.reached = True
        shape = [query.shape[0], query.shape[2], query.shape[1], value.shape[3]]
        if not operators.tracing():
            if self.decoder:
                self._record(query, key, value, attention_mask, **rest)
            return query.new_zeros(shape), None
        if not self.decoder:
            return _standard_attention(module, query, key, value, attention_mask, **rest), None
        return operators.marker(attention.MARKER, [query, key, value], shape), None

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
    attributes: dict[str, Any] = {"scale": float(scaling if scaling is not None else query.shape[3] ** -0.5)}
    if rest.get("softcap"):
        attributes["softcap"] = float(rest["softcap"])
    if mask is None and rest.get("is_causal", getattr(module, "is_causal", False)):
        attributes["is_causal"] = 1
    inputs = [query, key, value, *([mask] if mask is not None else [])]
    shape = [*query.shape[:3], value.shape[3]]
    return operators.standard("Attention", inputs, attributes, shape).transpose(1, 2)


def _register(watch: _Watch) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_IMPLEMENTATION, watch.attend)
    AttentionMaskInterface.register(_IMPLEMENTATION, watch.mask)


def _settle(model: Any, watch: _Watch) -> None:
    """Let an encoder that writes its attention into its layers have the mask it adds to its scores, not one of truth values."""
    import torch

    ids = torch.zeros((1, 4), dtype=torch.long)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if not watch.reached:
        model.config._attn_implementation = "eager"


def _observe(model: Any, watch: _Watch, context: int) -> None:
    """Run four tokens through the model so that `watch` sees every layer's attention."""
    import torch

    watch.context = context
    ids = torch.zeros((1, 4), dtype=torch.long)
    with torch.no_grad():
        # With a mask given, no model takes the positions for those of packed sequences.
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    if len(watch.layers) != expected:
        raise ExportError(f"{len(watch.layers)} of {expected} layers have an attention that can be replaced", _HINT)
