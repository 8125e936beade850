"""`aiasst convert`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiasst.artifacts.recipe import FLOAT_ROLES
from aiasst.cli import output
from aiasst.cli.options import Force, Json, Quiet

if TYPE_CHECKING:
    from aiasst.artifacts.model_folder import ModelFolder

EXAMPLES = """aiasst convert HuggingFaceTB/SmolLM2-135M-Instruct -o smollm

aiasst convert Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4 -o qwen

aiasst convert path/to/checkpoint --exporter transformers"""


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, a hub id, or a GGUF file.")],
    folder: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The folder to write. Default: MODEL's name-onnx."),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="text-generation, feature-extraction, … or a synonym.")
    ] = None,
    exporter: Annotated[
        str | None, typer.Option("--exporter", metavar="NAME", help="Try this one only: mobius, transformers, optimum.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a hub repository.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read .bin and .pt weights too; only from people you trust.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the repository's own Python code. Read it first.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Largest difference allowed, as a share of the largest logit.")
    ] = 1e-4,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Of a quantized checkpoint (GPTQ, AWQ, …): float32 weights, not its integers."
        ),
    ] = False,
    rest: Annotated[
        str | None,
        typer.Option(
            "--rest", metavar="int8|int4", help="Of a quantized checkpoint: what it left unquantized (head, …)."
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a model folder (ONNX) and prove that it computes the same. Quantized ones keep their integers."""
    from aiasst.pipeline import convert

    with output.progress(quiet=quiet) as progress:
        written = convert(
            model,
            folder,
            task=task,
            exporter=exporter,
            revision=revision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            tolerance=tolerance,
            dequantize=dequantize,
            rest=rest,
            force=force,
            progress=progress,
        )
    if as_json:
        output.document(essentials(written))
    else:
        _show(written)


def essentials(folder: ModelFolder) -> dict[str, object]:
    """What `--json` says: the manifest without its weight table and files."""
    manifest = folder.manifest.model_dump(mode="json", exclude={"weights", "files"})
    return {"folder": str(folder.path), "bytes": folder.weight_bytes, **manifest}


def _show(folder: ModelFolder) -> None:
    manifest, proof = folder.manifest, folder.manifest.verification
    rows: list[tuple[str, str]] = [
        ("task", manifest.task),
        ("exporter", manifest.exporter),
        ("size", output.human_bytes(folder.weight_bytes)),
    ]
    if manifest.shape is not None:
        shape = manifest.shape
        rows.append(("model", f"{shape.model_type}, {shape.layers} layers, hidden {shape.hidden_size}"))
    if proof is not None:
        rows.append(("largest difference", f"{proof.max_abs_diff:.2e} (allowed {proof.tolerance:.2e})"))
        rows.append(("same first choice", f"{proof.top1_agreement:.1%} of {proof.tokens} tokens: {proof.text}"))
    if manifest.quantization is not None:
        rows.append(
            ("weights", f"{manifest.quantization.bits_per_weight:.2f} bits ({manifest.quantization.algorithm})")
        )
        rows.append(("formats", _formats(folder)))
    output.table(f"wrote {folder.path}", ["what", "value"], rows)
    if manifest.encoding is not None and manifest.encoding.beyond:
        output.note(f"its files ask for {manifest.encoding.beyond}, which nobody here computes, so it will not be run")
    bits = " --bits 4" if manifest.encoding is None else ""  # an encoder's default, w8a8, is the form to take
    then = f"quantize {folder.path}{bits}" if manifest.quantization is None else f"chat {folder.path}"
    output.note(f"next: aiasst {then}")


def _formats(folder: ModelFolder) -> str:
    """How many matrices of products and lookups have which format."""
    rows = folder.manifest.weights.values()
    counts = Counter(row.format for row in rows if row.shared_with is None and row.role not in FLOAT_ROLES)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


command.__name__ = "convert"
