"""What is to be quantized: a model folder, or an ONNX file that others made. Knows no format and no recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import (
    GRAPH_NAME,
    MANIFEST_NAME,
    ModelFolder,
    Shape,
    Source,
    Tokens,
    Weight,
    inside,
)
from aiasst.errors import ArtifactError
from aiasst.quantize.emit import MICROSOFT
from aiasst.quantize.inventory import is_quantized


@dataclass(frozen=True)
class QuantizeSource:
    """An opened float model; its weights are memory-mapped, not read."""

    model: ir.Model
    folder: Path
    """Where tokenizer and configuration files lie."""
    beside: Path
    """Where the output goes when nobody says otherwise."""
    name: str
    """What the output is called after."""
    task: str
    exporter: str
    source: Source
    shape: Shape | None
    tokens: Tokens
    encoding: Encoding | None
    table: Mapping[str, Weight] | None
    """Weight table of the manifest; None for a foreign file."""
    graph_path: Path

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.model.graph.opset_imports.get("", 1)


def open_source(source: Path | str | ModelFolder) -> QuantizeSource:
    """Open a model folder, an .onnx file, or a folder that holds one .onnx file.

    Raises:
        ArtifactError: nothing there, not ONNX, incomplete, or quantized already.
    """
    if isinstance(source, ModelFolder):
        return _from_folder(source)
    path = Path(source)
    if path.is_file() and path.suffix == ".onnx":
        return _from_onnx(path, path.parent, path.stem)
    if path.is_dir() and not (path / MANIFEST_NAME).exists():
        files = sorted(path.glob("*.onnx")) or sorted(path.glob("onnx/*.onnx"))
        preferred = [file for file in files if file.name == GRAPH_NAME]
        if len(files) == 1 or preferred:
            return _from_onnx((preferred or files)[0], path.resolve().parent, path.resolve().name)
        if files:
            raise ArtifactError(f"{path} holds {len(files)} ONNX files", f"name one: aiasst quantize {files[0]}")
    return _from_folder(ModelFolder.open(path))


def _from_folder(folder: ModelFolder) -> QuantizeSource:
    manifest = folder.manifest
    if manifest.quantization is not None:
        raise ArtifactError(
            f"{folder.path} is quantized already (recipe {manifest.quantization.recipe})",
            "quantize the float32 folder of `aiasst convert`; of a quantized checkpoint, with --dequantize",
        )
    return QuantizeSource(
        model=_load(folder.graph),
        folder=folder.path,
        beside=folder.path.resolve().parent,
        name=folder.path.resolve().name,
        task=manifest.task,
        exporter=manifest.exporter,
        source=manifest.source,
        shape=manifest.shape,
        tokens=manifest.tokens,
        encoding=manifest.encoding,
        table=manifest.weights,
        graph_path=folder.graph,
    )


def _from_onnx(path: Path, beside: Path, name: str) -> QuantizeSource:
    model = _load(path)
    if is_quantized(model.graph):
        raise ArtifactError(f"{path} is quantized already", "quantize the float32 model it was made from")
    _normalize(model)
    return QuantizeSource(
        model=model,
        folder=path.parent,
        beside=beside,
        name=name,
        task="unknown",
        exporter="unknown",
        source=Source(kind="onnx", name=path.name),
        shape=None,
        tokens=Tokens(),
        encoding=None,
        table=None,
        graph_path=path,
    )


def _load(path: Path) -> ir.Model:
    hint = "get or export the model again"
    try:
        model = ir.load(path)
    except DecodeError:
        raise ArtifactError(f"{path} is not an ONNX model", hint) from None
    if model.graph.num_nodes() == 0:
        # An empty file is a valid, empty protobuf.
        raise ArtifactError(f"{path} is not an ONNX model: it computes nothing", hint)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = inside(path.parent, str(tensor.location))
        needed = (tensor.offset or 0) + (tensor.length or 0)
        if not file.is_file() or file.stat().st_size < needed:
            raise ArtifactError(f"{file}, the weights of {path.name}, is missing or cut short", hint)
    return model


def _normalize(model: ir.Model) -> None:
    """Bring a foreign graph into the forms the inventory knows: weights are initializers, products read them directly."""
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    common.IdentityEliminationPass()(model)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _absorb_transpose(model.graph, node)


def _absorb_transpose(graph: ir.Graph, node: ir.Node) -> None:
    """MatMul(x, Transpose(weight)) → FusedMatMul(x, weight, transB=1), when that is all the Transpose is for."""
    weight, output = node.inputs[0], node.outputs[0]
    if (
        weight is None
        or not weight.is_initializer()
        or weight.const_value is None
        or len(weight.const_value.shape) != 2
    ):
        return
    permutation = node.attributes.get("perm")
    if permutation is not None and list(permutation.as_ints()) != [1, 0]:
        return
    readers = output.uses()
    if output.is_graph_output() or any(n.op_type != "MatMul" or n.domain or i != 1 for n, i in readers):
        return
    graph.opset_imports.setdefault(MICROSOFT, 1)
    for product, _ in readers:
        product.replace_input_with(1, weight)
        product.op_type, product.domain = "FusedMatMul", MICROSOFT
        product.attributes["transB"] = ir.AttrInt64("transB", 1)
    graph.remove(node, safe=True)
