"""Names every weight and the node that uses it by what it is, so that later stages never guess. Changes names only.

Roles of matrices come from the wiring (`anatomy`); names of norms come from the checkpoint's own parameter names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import Role
from aiasst.convert.finish.anatomy import GQA, NORM_OPS, FeedForward, Product, as_product, attentions, head, layers
from aiasst.convert.finish.graph import back_through, is_weight, weight_tensor
from aiasst.convert.finish.tied import embedding

CONSTANT = "const."
"""Prefix of the small constants that belong to the graph and not to the model."""

_LAYER = re.compile(r"(?:^|[._/])(?:layers|layer|h|blocks|block)[._](\d+)[._](.+)$")
_CONTAINERS = frozenset({"self_attn", "attn", "attention", "self", "self_attention", "mlp", "output", "dense"})
_TASK_HEAD = re.compile(
    r"^(pooler|classifier|head|score|qa_outputs|cls|pre_classifier|vocab_projector|vocab_transform)\b"
)
_PREFIX = re.compile(r"^(?:model|transformer|bert|encoder|roberta|distilbert|mpnet|deberta|electra|base_model)\.")


@dataclass(frozen=True)
class Named:
    """What a weight of the finished graph is."""

    name: str
    role: Role
    layer: int | None


def apply(graph: ir.Graph, *, decoder: bool) -> list[Named]:
    """Rename the weights and the nodes of products; what each of them is, in the order of the graph's initializers."""
    names = _Names(graph)
    table = embedding(graph)
    names.give(table, "embed_tokens.weight", "embed", None)
    _embeddings(graph, names)
    _products(graph, names, decoder=decoder)
    _rotary(graph, names)
    if decoder:
        _final_norm(graph, names)
    _norms(graph, names)
    _rest(graph, names)
    return [names.given[value] for value in graph.initializers.values() if value in names.given]


class _Names:
    """Gives names, each once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.given: dict[ir.Value, Named] = {}

    def give(self, value: ir.Value | None, name: str, role: Role, layer: int | None) -> None:
        """Name `value` unless it has been named; a taken name gets a number."""
        if value is None or value in self.given or not is_weight(value):
            return
        unique, count = name, 1
        while unique in self.graph.initializers and self.graph.initializers[unique] is not value:
            holder = self.graph.initializers[unique]
            if holder not in self.given:
                _rename(self.graph, holder, _free(self.graph, unique))
                break
            count += 1
            unique = f"{name}_{count}"
        _rename(self.graph, value, unique)
        self.given[value] = Named(unique, role, layer)

    def product(self, product: Product | None, stem: str, role: Role, layer: int | None) -> None:
        """Name a product: its weight, its bias and their nodes."""
        if product is None:
            return
        self.give(product.weight, f"{stem}.weight", role, layer)
        product.node.name = stem
        self.give(product.bias, f"{stem}.bias", "bias", layer)
        if product.bias_node is not None:
            product.bias_node.name = f"{stem}.bias_add"


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.name == name:
        return
    tensor = weight_tensor(value)
    if value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]
    value.name = name
    tensor.name = name
    value.const_value = tensor
    graph.register_initializer(value)


def _free(graph: ir.Graph, name: str) -> str:
    """`name`, with a number where it is taken."""
    unique, count = name, 1
    while unique in graph.initializers:
        count += 1
        unique = f"{name}#{count}"
    return unique


def _embeddings(graph: ir.Graph, names: _Names) -> None:
    """Token types are looked up by their input, positions by something computed."""
    types = next((value for value in graph.inputs if value.name == signature.TOKEN_TYPE_IDS), None)
    for node in graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is None or not is_weight(table) or len(weight_tensor(table).shape) != 2:
            continue
        if weight_tensor(table).dtype != ir.DataType.FLOAT:
            continue
        if types is not None and node.inputs[1] is types:
            names.give(table, "type_embed.weight", "type_embed", None)
        else:
            names.give(table, "position_embed.weight", "position_embed", None)


def _products(graph: ir.Graph, names: _Names, *, decoder: bool) -> None:
    top = head(graph) if decoder else None
    if top is not None:
        product = as_product(top)
        names.product(product, "lm_head", "lm_head", None)
        top.name = "lm_head"
    parts: dict[int, tuple[tuple[Role, str], ...]] = {
        1: (("qkv", "qkv_proj"),),
        3: (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")),
    }
    for layer in layers(graph):
        stem = f"layers.{layer.index}"
        layer.attention.name = f"{stem}.attention"
        for product, (role, name) in zip(layer.inputs, parts.get(len(layer.inputs), ()), strict=False):
            names.product(product, f"{stem}.{name}", role, layer.index)
        names.product(layer.output, f"{stem}.o_proj", "o", layer.index)
        if layer.feed_forward is not None:
            _feed_forward(names, layer.feed_forward, stem, layer.index)
        for product in layer.others:
            stemmed = _plain(product.weight.name or "product")
            left: Role = "other" if decoder else "classifier"
            names.product(product, stemmed.removesuffix(".weight"), left, layer.index if decoder else None)


def _feed_forward(names: _Names, block: FeedForward, stem: str, layer: int) -> None:
    names.product(block.gate, f"{stem}.gate_proj", "gate", layer)
    names.product(block.up, f"{stem}.up_proj", "up", layer)
    names.product(block.gate_up, f"{stem}.gate_up_proj", "gate_up", layer)
    names.product(block.down, f"{stem}.down_proj", "down", layer)


def _rotary(graph: ir.Graph, names: _Names) -> None:
    """Layers with a sliding window may have caches of their own: those are called local where both kinds exist."""
    pairs: dict[tuple[ir.Value, ir.Value], bool] = {}
    for node in attentions(graph):
        if node.op_type != GQA or len(node.inputs) < 9 or node.inputs[7] is None or node.inputs[8] is None:
            continue
        window = node.attributes.get("local_window_size")
        local = window is not None and window.as_int() > 0
        pair = (node.inputs[7], node.inputs[8])
        pairs[pair] = pairs.get(pair, True) and local
    ordered = sorted(pairs, key=lambda pair: pairs[pair])
    for index, (cos, sin) in enumerate(ordered):
        suffix = "" if index == 0 else ".local" if index == 1 else f".local{index}"
        names.give(cos, f"rotary.cos{suffix}", "rotary", None)
        names.give(sin, f"rotary.sin{suffix}", "rotary", None)


def _norm_weights(node: ir.Node) -> Iterator[tuple[ir.Value, str]]:
    first = 2 if node.op_type.startswith("Skip") else 1
    for index, part in ((first, "weight"), (first + 1, "bias")):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None and is_weight(value):
            yield value, part


def _final_norm(graph: ir.Graph, names: _Names) -> None:
    top = head(graph)
    passable = frozenset({"GatherND", "Mul", "Div", "Cast"})
    start = top.inputs[0] if top is not None else None
    for node in back_through(start, passable, lambda node: node.op_type in NORM_OPS):
        for value, part in _norm_weights(node):
            names.give(value, f"norm.{part}", "norm", None)
        node.name = "norm"
        return


def _norms(graph: ir.Graph, names: _Names) -> None:
    for node in graph:
        if node.op_type not in NORM_OPS:
            continue
        for value, part in _norm_weights(node):
            stem, layer = _norm_name(value.name or "norm.weight")
            names.give(value, f"{stem}.{part}", "norm", layer)
            if part == "weight":
                node.name = names.given[value].name.removesuffix(".weight")


def _norm_name(raw: str) -> tuple[str, int | None]:
    """(stem, layer) of a norm by its parameter's name: encoder.layer.3.attention.LayerNorm.weight → layers.3.attention_norm."""
    plain = _plain(raw)
    found = _LAYER.search(plain)
    parts = (found.group(2) if found else plain).split(".")[:-1] or ["norm"]
    module = parts[-1]
    if module == "LayerNorm":
        module = "embed_norm" if not found else "attention_norm" if "attention" in parts else "output_norm"
    if not found:
        return module, None
    return f"layers.{found.group(1)}.{module}", int(found.group(1))


def _rest(graph: ir.Graph, names: _Names) -> None:
    """Whatever floating-point weight is left keeps its checkpoint's name, without its prefix; small ones are constants."""
    for value in tuple(graph.initializers.values()):
        if value in names.given or not is_weight(value) or (value.name or "").startswith(CONSTANT):
            continue
        tensor = weight_tensor(value)
        if not tensor.dtype.is_floating_point() or tensor.size <= 1:
            _rename(graph, value, _free(graph, f"{CONSTANT}{_plain(value.name or 'value').removeprefix('const_')}"))
            continue
        plain = _plain(value.name or "weight")
        found = _LAYER.search(plain)
        layer = int(found.group(1)) if found else None
        if found:
            tail = [part for part in found.group(2).split(".") if part not in _CONTAINERS]
            plain = f"layers.{layer}.{'.'.join(tail)}"
        names.give(value, plain, _role_by_name(plain), layer)


def _role_by_name(name: str) -> Role:
    if name.endswith(".bias"):
        return "bias"
    if name.endswith("_inv_freq"):
        return "rotary"
    if name.endswith((".distance_keys", ".distance_queries")):
        return "position_embed"
    return "classifier" if _TASK_HEAD.match(name) else "other"


def _plain(raw: str) -> str:
    """A parameter's name without the wrapper's prefix and without what an exporter appended."""
    name = re.sub(r"(#\d+|_t)$", "", raw)
    while _PREFIX.match(name) and not re.match(r"^encoder\.layers?\.\d", name):
        name = _PREFIX.sub("", name, count=1)
    return name
