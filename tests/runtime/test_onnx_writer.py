"""What is written without the package `onnx` is read by it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from aiasst.runtime.onnx_writer import Attribute, Node, Value, model_bytes


def written(attributes: dict[str, Attribute] | None = None, weight: np.ndarray | None = None) -> onnx.ModelProto:
    weight = np.arange(6, dtype=np.float32).reshape(3, 2) if weight is None else weight
    data = model_bytes(
        [Node("MatMul", ["x", "w"], ["h"]), Node("Op", ["h"], ["y"], attributes or {}, "com.microsoft")],
        [Value("x", np.float32, ("rows", 3))],
        [Value("y", np.float32, ("rows", 2))],
        {"w": weight},
        {"": 21, "com.microsoft": 1},
    )
    return onnx.load_from_string(data)


def test_the_whole_is_valid() -> None:
    model = written()
    onnx.checker.check_model(model)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 21, "com.microsoft": 1}
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Op"]
    assert model.graph.node[1].domain == "com.microsoft"
    rows, columns = model.graph.input[0].type.tensor_type.shape.dim
    assert (rows.dim_param, columns.dim_value) == ("rows", 3)


@given(
    st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False), st.text(), st.lists(st.integers(-9, 2**40))
)
def test_attributes(number: int, real: float, text: str, several: list[int]) -> None:
    node = written({"i": number, "f": real, "s": text, "n": several}).graph.node[1]
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (found["i"], found["f"], found["s"].decode(), list(found["n"])) == (number, real, text, several)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int32", "int64", "bool"])
def test_tensors(dtype: str) -> None:
    array = np.arange(200).reshape(4, 50).astype(dtype)
    model = written({"t": array}, array)
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), array)
    attribute = model.graph.node[1].attribute[0]
    assert np.array_equal(numpy_helper.to_array(attribute.t), array)
    assert numpy_helper.to_array(model.graph.initializer[0]).dtype == array.dtype


def test_scalars_and_views() -> None:
    assert numpy_helper.to_array(written({"t": np.array(7, np.uint8)}).graph.node[1].attribute[0].t).shape == ()
    view = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert np.array_equal(numpy_helper.to_array(written(weight=view).graph.initializer[0]), view)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(KeyError):
        written(weight=np.zeros((3, 2), np.complex64))
