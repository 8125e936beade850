"""Attention that a layer writes out, since it adds a bias to its scores, as one Attention operator with that bias as its mask.

Knows two such layers by their class names: MPNet's (one bias for all layers, Song et al., arXiv 2004.09297) and DeBERTa's
disentangled one (a bias of queries and keys with positions, He et al., arXiv 2111.09543). Traced as written they leave no
attention node, so that nobody would find the products around it. A replacement is taken where it gives what the layer gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiasst.convert.tracing import operators

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1e-5


def replace(model: torch.nn.Module) -> int:
    """Replace the forward of every such layer of `model`, for good; how many there were."""
    count = 0
    for module in model.modules():
        kind = type(module).__name__
        if kind == "MPNetSelfAttention":
            count += _taken(module, _mpnet(module), _mpnet_sample(module))
        elif kind == "DebertaV2Encoder" and getattr(module, "relative_attention", False):
            count += _disentangled_layers(module)
    return count


def attend(query: Any, key: Any, value: Any, mask: Any, scale: float) -> torch.Tensor:
    """softmax(query · key x scale + mask) · value as one node of a trace, or as torch has it.

    Args:
        query: float32 [batch, heads, sequence, head_dim]; so are `key` and `value`.
        key: .
        value: .
        mask: float32, what is added to the scores [batch, heads, sequence, sequence], or truth values: which of them count.
        scale: of the scores.

    Returns:
        float32 [batch, sequence, heads x head_dim].
    """
    import torch

    if operators.tracing():
        shape = [*query.shape[:3], value.shape[3]]
        context = operators.standard("Attention", [query, key, value, mask], {"scale": scale}, shape)
    else:
        context = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return context.transpose(1, 2).flatten(2)


def _taken(module: Any, forward: Callable[..., Any], sample: dict[str, torch.Tensor]) -> int:
    """Give `module` the `forward` where both answer `sample` alike; 1 where it was given."""
    import torch

    with torch.no_grad():
        expected, found = module(**sample)[0], forward(**sample)[0]
    if expected.shape != found.shape or not torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE):
        return 0
    module.forward = forward
    return 1


def _by_head(values: torch.Tensor, size: int) -> torch.Tensor:
    """[batch, sequence, heads x size] to [batch, heads, sequence, size]."""
    return values.reshape(*values.shape[:2], -1, size).transpose(1, 2)


def _random(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _mpnet(module: Any) -> Callable[..., Any]:
    size = module.attention_head_size

    def forward(
        hidden_states: Any, attention_mask: Any = None, position_bias: Any = None, *_: Any, **__: Any
    ) -> tuple[Any]:
        query, key, value = (_by_head(product(hidden_states), size) for product in (module.q, module.k, module.v))
        # Written alike in every layer, so that the graph has the sum once.
        mask = position_bias if attention_mask is None else position_bias + attention_mask
        return (module.o(attend(query, key, value, mask, size**-0.5)),)

    return forward


def _mpnet_sample(module: Any) -> dict[str, Any]:
    import torch

    mask = torch.zeros((2, 1, 1, 5))
    mask[0, :, :, 3:] = torch.finfo(torch.float32).min
    return {
        "hidden_states": _random(2, 5, module.q.in_features),
        "attention_mask": mask,
        "position_bias": _random(2, module.num_attention_heads, 5, 5),
    }


def _disentangled_layers(encoder: Any) -> int:
    """Replace the attention of every layer of a DebertaV2Encoder; how many were."""
    import torch

    with torch.no_grad():
        embeddings = encoder.get_rel_embedding()
    count = 0
    for layer in encoder.layer:
        module = layer.attention.self
        hidden = _random(2, 5, module.query_proj.in_features)
        mask = torch.ones((2, 1, 5, 5), dtype=torch.int64)
        mask[0, :, 3:] = mask[0, :, :, 3:] = 0
        positions = encoder.get_rel_pos(hidden)
        sample = {"hidden_states": hidden, "attention_mask": mask, "relative_pos": positions}
        original = module.forward
        # The original is asked with the embeddings of distances, of which the replacement keeps what the layer makes.
        module.forward = lambda original=original, **given: original(rel_embeddings=embeddings, **given)
        taken = _taken(module, _disentangled(module, embeddings), sample)
        if not taken:
            module.forward = original
        count += taken
    return count


def _disentangled(module: Any, embeddings: torch.Tensor) -> Callable[..., Any]:
    """What a layer makes of the distances does not depend on the text: it is computed here, not at every run."""
    import torch

    size = module.attention_head_size
    span = module.pos_ebd_size
    shared = module.share_att_key
    scale = 1 / math.sqrt(size * (1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)))
    with torch.no_grad():
        rows = embeddings[None, : 2 * span]
        if "c2p" in module.pos_att_type:
            made = (module.key_proj if shared else module.pos_key_proj)(rows)
            module.register_buffer("distance_keys", (_by_head(made, size) * scale).transpose(2, 3).contiguous())
        if "p2c" in module.pos_att_type:
            made = (module.query_proj if shared else module.pos_query_proj)(rows)
            module.register_buffer("distance_queries", (_by_head(made, size) * scale).transpose(2, 3).contiguous())

    def looked_up(values: Any, table: Any, places: Any) -> Any:
        """values · table, of whose columns row q wants `places[q]`: [batch, heads, sequence, sequence]."""
        scores = values @ table
        return torch.gather(scores, 3, places.expand(*scores.shape[:3], places.shape[-1]))

    def forward(hidden_states: Any, attention_mask: Any, *_: Any, relative_pos: Any, **__: Any) -> tuple[Any, None]:
        products = (module.query_proj, module.key_proj, module.value_proj)
        query, key, value = (_by_head(product(hidden_states), size) for product in products)
        distances = relative_pos.reshape(1, 1, *relative_pos.shape[-2:])
        kept = attention_mask.bool()
        biases = []
        if "c2p" in module.pos_att_type:
            places = torch.clamp(distances + span, 0, 2 * span - 1)
            biases.append(looked_up(query, module.distance_keys, places))
        if "p2c" in module.pos_att_type:
            places = torch.clamp(span - distances, 0, 2 * span - 1)
            biases.append(looked_up(key, module.distance_queries, places).transpose(2, 3))
        bias = sum(biases[1:], biases[0]) if biases else torch.zeros_like(kept, dtype=query.dtype)
        mask = bias.masked_fill(~kept, torch.finfo(query.dtype).min)
        return attend(query, key, value, mask, scale), None

    return forward
