"""`aiasst inspect`: what a model folder is, from its manifest and accuracy card alone. Opens no graph and no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aiasst.cli import card as cards
from aiasst.cli import output
from aiasst.cli.options import Folder, Json

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder, Weight

_Grid = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Column names and rows of a table."""

EXAMPLES = "aiasst inspect story-int4\n\naiasst inspect story-int4 --weights"


def command(
    folder: Folder,
    weights: Annotated[
        bool, typer.Option("--weights", "-w", help="List every weight: role, layer, shape, format, bytes.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file and compare its hash with the manifest.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a model folder is: source, task, architecture, formats, accuracy of the conversion."""
    from aiasst.artifacts.card import read_card
    from aiasst.artifacts.model_folder import ModelFolder

    model = ModelFolder.open(folder)
    if check:
        model.check_hashes()
    if json:
        output.document(model.manifest.model_dump(mode="json"))
        return
    output.section(str(folder), _facts(model, hashes_checked=check))
    if card := read_card(model):
        output.section(f"\nAccuracy{f' against {card.original}' if card.original else ''}", cards.brief(card))
    tables = [("", model.manifest.weights)]
    if model.manifest.twin is not None:
        tables.append((" of the second form", model.manifest.twin.weights))
    for whose, rows in tables:
        output.table(f"Weights by role{whose}", *_by_role(rows), right=("weights", "bytes", "share"))
        if weights:
            output.table(f"Weights{whose}", *_every_weight(rows), right=("layer", "bytes"))


command.__name__ = "inspect"


def _cache(model: ModelFolder) -> str:
    """Format of the cache, for the beginning of a line."""
    quantization = model.manifest.quantization
    cache = None if quantization is None else quantization.cache
    if cache is None:
        return "float32, "
    return f"{cache.format}, {cache.scales} scales (from {cache.calibration.tokens:,} tokens), "


def _facts(model: ModelFolder, *, hashes_checked: bool) -> list[tuple[str, str]]:
    manifest = model.manifest
    source = manifest.source
    facts = [
        ("source", f"{source.name} ({source.kind}{f', {source.revision[:12]}' if source.revision else ''})"),
        ("task", manifest.task),
        ("made by", f"aiasst {manifest.aiasst_version}, exporter {manifest.exporter}"),
    ]
    if shape := manifest.shape:
        facts += [
            (
                "architecture",
                f"{shape.model_type}, {shape.layers} layers, hidden {shape.hidden_size}, vocabulary {shape.vocab_size}",
            ),
            (
                "attention",
                f"{shape.heads} heads, {shape.kv_heads} KV heads of {shape.head_dim}; context {shape.context_length}",
            ),
        ]
    if manifest.task != "text-generation" and manifest.shape is not None:
        facts.append(("answers", _answers(model)))
    facts.append(("size", f"{output.human_bytes(model.weight_bytes)} graph and weights"))
    if model.cache_bytes_per_token:
        facts.append(("KV cache", f"{_cache(model)}{output.human_bytes(model.cache_bytes_per_token)} a token"))
    if quantization := manifest.quantization:
        facts.append(
            (
                "quantized",
                f"recipe {quantization.recipe}, {quantization.algorithm}, {quantization.bits_per_weight:.2f} bits per weight",
            )
        )
    if twin := manifest.twin:
        made = twin.quantization
        facts.append(
            (
                "second form",
                f"recipe {made.recipe}, {made.algorithm}, {output.human_bytes(model.twin_bytes)} beside the first",
            )
        )
    if verified := manifest.verification:
        facts.append(
            (
                "verified",
                f"against {verified.reference} on {verified.tokens} tokens: largest difference {verified.max_abs_diff:.1e}, "
                f"top-1 agreement {verified.top1_agreement:.2%}",
            )
        )
    facts.append(
        (
            "files",
            f"{len(manifest.files)}, {'every hash is right' if hashes_checked else 'sizes are right (--check reads them)'}",
        )
    )
    return facts


def _answers(model: ModelFolder) -> str:
    """What becomes of an encoder's output, by the checkpoint's own files."""
    encoding = model.encoding
    if encoding.labels and "classification" in model.manifest.task:
        named = ", ".join(encoding.labels[:8]) + (", …" if len(encoding.labels) > 8 else "")
        return f"{named}; {encoding.activation}"
    parts = [f"{' and '.join(encoding.pooling)} pooling"]
    parts += [f"{each.activation} projection to {each.outputs} numbers" for each in encoding.projections]
    parts += ["normalized" if encoding.normalize else "not normalized"]
    parts += [f"{encoding.max_tokens} tokens are read"] if encoding.max_tokens else []
    parts += [f"prompts {', '.join(encoding.prompts)}"] if encoding.prompts else []
    parts += [f"and {encoding.beyond}, which is not in the graph"] if encoding.beyond else []
    return ", ".join(parts)


def _by_role(weights: Mapping[str, Weight]) -> _Grid:
    groups: dict[tuple[str, str], list[Weight]] = {}
    for weight in weights.values():
        groups.setdefault((weight.role, _format_label(weight)), []).append(weight)
    total = sum(weight.bytes for weight in weights.values()) or 1
    rows = [
        (role, label, str(len(group)), output.human_bytes(size := _bytes(group)), f"{size / total:.1%}")
        for (role, label), group in sorted(groups.items(), key=lambda item: -_bytes(item[1]))
    ]
    return ("role", "format", "weights", "bytes", "share"), rows


def _every_weight(weights: Mapping[str, Weight]) -> _Grid:
    rows = [
        (
            name,
            weight.role,
            "" if weight.layer is None else str(weight.layer),
            " x ".join(map(str, weight.shape)),
            _format_label(weight),
            str(weight.bytes),
        )
        for name, weight in weights.items()
    ]
    return ("name", "role", "layer", "shape", "format", "bytes"), rows


def _format_label(weight: Weight) -> str:
    return f"{weight.format} (shared)" if weight.shared_with else weight.format


def _bytes(weights: Iterable[Weight]) -> int:
    return sum(weight.bytes for weight in weights)
