"""What a checkpoint's configuration says that no exported graph can tell: windows, context, ties, token ids. Reads no weights."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiasst.artifacts.document import read_json
from aiasst.artifacts.model_folder import Tokens
from aiasst.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from aiasst.convert.sources import Checkpoint

# Configurations of MPNet and T5; of DeBERTa-v2.
_BUCKETS = ("relative_attention_num_buckets", "relative_attention")
_HINT = "choose a checkpoint with full or sliding-window attention"


@dataclass(frozen=True)
class Architecture:
    """The numbers of the configuration, defaults of the model class filled in."""

    model_type: str
    layers: int
    hidden_size: int
    vocab_size: int
    heads: int
    kv_heads: int
    context_length: int
    layer_windows: tuple[int | None, ...]
    """Sliding window of each layer; None = full attention."""
    tied_embedding: bool
    tokens: Tokens
    relative_positions: bool = False
    """Whether attention goes by distances of tokens that are told apart less finely the larger they are."""


def load_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's configuration as transformers completes it (the text part of a composite one).

    Raises:
        UnsupportedModelError: transformers does not know the model type.
        CheckpointError: the configuration is broken.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            str(checkpoint.path), trust_remote_code=checkpoint.trust_remote_code, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        if checkpoint.model_type not in transformers.CONFIG_MAPPING:
            raise UnsupportedModelError(
                f"transformers does not know the model type '{checkpoint.model_type}', so there is nothing to compare with",
                "upgrade transformers",
            ) from error
        raise CheckpointError(f"the configuration is broken: {error}", "download the checkpoint again") from error
    except (OSError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the configuration is broken: {error}", "download the checkpoint again") from error
    return config.get_text_config(decoder=True)


def nobody_exports(model_type: str, task: str, said: Sequence[str] = ()) -> UnsupportedModelError:
    """The error for a model type that cannot be exported: what it is, what each exporter `said`, and what can be done."""
    import transformers

    reasons = "".join(f"; {reason}" for reason in said)
    if model_type in transformers.CONFIG_MAPPING:
        hint = "choose another --task, or leave out --exporter so that every exporter is asked"
    else:
        near = difflib.get_close_matches(model_type, list(transformers.CONFIG_MAPPING), n=3)
        known = f"known and near: {', '.join(near)}; else " if near else ""
        hint = f"{known}upgrade transformers and mobius-onnx, which learn new model types with every release"
    return UnsupportedModelError(f"nothing here exports the model type '{model_type}' for {task}{reasons}", hint)


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """The numbers that conversion needs.

    Raises:
        UnsupportedModelError: an unknown model type, or attention that no node here expresses.
        CheckpointError: the configuration is broken or lacks a number.
    """
    config = load_config(checkpoint)
    layers = _number(config, "num_hidden_layers")
    heads = _number(config, "num_attention_heads")
    context = _context_length(config)
    return Architecture(
        model_type=checkpoint.model_type,
        layers=layers,
        hidden_size=_number(config, "hidden_size"),
        vocab_size=_number(config, "vocab_size"),
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        context_length=context,
        layer_windows=_windows(config, layers, context),
        tied_embedding=bool(getattr(config, "tie_word_embeddings", False)),
        tokens=_tokens(checkpoint.path, config),
        relative_positions=any(getattr(config, name, None) for name in _BUCKETS),
    )


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(
            f"config.json of model type '{config.model_type}' has no usable {name}", "download the checkpoint again"
        )
    return value


# Their first token stands at position pad_token_id + 1 of the table of positions (fairseq's habit).
_POSITIONS_AFTER_PADDING = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "roberta-prelayernorm",
        "data2vec-text",
        "mpnet",
        "longformer",
    }
)


def _context_length(config: Any) -> int:
    """Positions the graph is right for.

    LongRoPE changes all frequencies once a text passes the original length (Ding et al. 2024, section 3.3); keys that
    are in the cache by then would be of the other kind. So the original length is the limit.
    """
    context = _number(config, "max_position_embeddings")
    if config.model_type in _POSITIONS_AFTER_PADDING:
        return context - (getattr(config, "pad_token_id", None) or 0) - 1
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        return min(context, original) if isinstance(original, int) and original > 0 else context
    return context


def _windows(config: Any, layers: int, context: int) -> tuple[int | None, ...]:
    """`layer_types` says it layer by layer; without it a `sliding_window` holds for all (Mistral, Phi-3)."""
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or window >= context or getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (window,) * layers
    strange = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if strange:
        raise UnsupportedModelError(f"model type '{config.model_type}' has layers of kind '{strange[0]}'", _HINT)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _tokens(folder: Path, config: Any) -> Tokens:
    """Special ids: generation_config.json has the last word on the end, config.json fills in."""
    path = folder / "generation_config.json"
    generation: Any = read_json(path, "generation config", "download the checkpoint again") if path.is_file() else {}
    generation = generation if isinstance(generation, dict) else {}

    def single(name: str) -> int | None:
        value = generation.get(name, getattr(config, name, None))
        return value if isinstance(value, int) else None

    ends: list[int] = []
    for value in (generation.get("eos_token_id"), getattr(config, "eos_token_id", None)):
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and token not in ends:
                ends.append(token)
    return Tokens(bos=single("bos_token_id"), eos=tuple(ends), pad=single("pad_token_id"))
