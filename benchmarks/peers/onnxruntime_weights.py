"""ONNX Runtime's own weight-only quantizers: round-to-nearest (the default) and k_quant. They look at no text.

Variants: ALGORITHM-BLOCK[-head8], ALGORITHM one of rtn and k_quant. Without head8, as the tool leaves a tied model: embedding
and head stay in fp32. With it, the head is quantized by the same tool to 8 bits and the embedding shares its bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from common import Job, Writer, elements, main
from onnx import helper, numpy_helper
from onnx_logits import write_logits
from onnxruntime.quantization.matmul_nbits_quantizer import KQuantWeightOnlyQuantConfig, MatMulNBitsQuantizer

HEAD, EMBEDDING, GRAPH = "head/MatMul", "embed_tokens.weight", "model.onnx"


def quantize(job: Job) -> None:
    """Write the quantized graph to the output folder."""
    algorithm, block, *head = job.variant.split("-")
    model = onnx.load(job.onnx / GRAPH)
    excluded = []
    if head:
        untie_head(model)
        excluded = [HEAD]
    small = run(model, algorithm, 4, int(block), excluded)
    if head:
        others = [node.name for node in small.graph.node if node.op_type == "MatMul" and node.name != HEAD]
        small = run(small, "rtn", 8, 128, others)
        share_head(small)
    onnx.save(small, job.output / GRAPH, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)


def run(model: onnx.ModelProto, algorithm: str, bits: int, block: int, excluded: list[str]) -> onnx.ModelProto:
    """One run of the tool with its own defaults (asymmetric), and int8 arithmetic at run time as everywhere in this table."""
    config = KQuantWeightOnlyQuantConfig() if algorithm == "k_quant" else None
    tool = MatMulNBitsQuantizer(
        model, bits=bits, block_size=block, accuracy_level=4, nodes_to_exclude=excluded, algo_config=config
    )
    tool.process()
    return tool.model.model


def untie_head(model: onnx.ModelProto) -> None:
    """The head reads the embedding transposed (FusedMatMul), which the tool does not know: give it a MatMul of its own."""
    weight = numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == EMBEDDING))
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), "head.weight"))
    (index,) = (i for i, node in enumerate(model.graph.node) if node.op_type == "FusedMatMul")
    old = model.graph.node[index]
    new = helper.make_node("MatMul", [old.input[0], "head.weight"], list(old.output), name=HEAD)
    model.graph.node.remove(old)
    model.graph.node.insert(index, new)


def share_head(model: onnx.ModelProto) -> None:
    """Put the values of the 8-bit head into the embedding, as if both read the same bytes."""
    head = next(node for node in model.graph.node if node.op_type == "MatMulNBits" and HEAD in node.name)
    arrays = {i.name: i for i in model.graph.initializer}
    values, scales, zeros = (numpy_helper.to_array(arrays[name]) for name in head.input[1:4])
    rows, blocks, _ = values.shape
    shifted = values.astype(np.float32) - zeros.reshape(rows, blocks, 1)
    embedding = (shifted * scales.reshape(rows, blocks, 1)).reshape(rows, -1)
    arrays[EMBEDDING].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(embedding), EMBEDDING))


def logits(folder: Path, ids: np.ndarray, writer: Writer, int8_head: bool) -> int:
    """Logits by ONNX Runtime; the bytes of the weights, a shared embedding counted once."""
    write_logits(folder / GRAPH, ids, writer)
    model = onnx.load(folder / GRAPH, load_external_data=False)
    shared = any(node.op_type == "MatMulNBits" and HEAD in node.name for node in model.graph.node)
    taken = 0
    for tensor in model.graph.initializer:
        if not tensor.name.startswith(("rotary.", "const.")) and not (shared and tensor.name == EMBEDDING):
            taken += elements(tuple(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return taken


if __name__ == "__main__":
    main("onnxruntime", quantize, logits)
