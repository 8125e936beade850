"""What cannot be imported is refused, by name, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiasst.convert.imports.scheme import read_scheme
from aiasst.errors import ArtifactError, CheckpointError, UnsupportedModelError, UsageError
from aiasst.pipeline import convert
from aiasst.quantize import quantize
from tests import checkpoints
from tests.convert.imports import packers
from tests.convert.imports.packers import Made, Style
from tests.convert.imports.test_imports import SIZES, awq, compressed, gptq

MODULE = "model.layers.1.mlp.down_proj"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    folder = checkpoints.build("llama", tmp_path / "checkpoint", dtype="float16", **SIZES)
    return packers.pack(folder, gptq(), partial(packers.gptq_tensors, v1=True))


def refused(made: Made, kind: type[CheckpointError], *words: str) -> None:
    output = made.folder.parent / "out"
    with pytest.raises(kind) as raised:
        convert(made.folder, output)
    for word in words:
        assert word in raised.value.message
    assert raised.value.hint
    assert [path.name for path in made.folder.parent.iterdir()] == ["checkpoint"]


def _cut(part: str, rows: slice, columns: slice) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{MODULE}.{part}"] = tensors[f"{MODULE}.{part}"][rows, columns]

    return change


def _drop(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[f"{MODULE}.{part}"]

    return change


def _put(part: str, array: np.ndarray) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"{MODULE}.{part}": array})


ALL = slice(None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_cut("qweight", slice(8), ALL), "packed for 64 inputs"),
        (_cut("qweight", ALL, slice(8)), "8 outputs"),
        (_cut("scales", slice(2), ALL), "scales"),
        (_cut("scales", ALL, slice(8)), "scales"),
        (_cut("qzeros", ALL, slice(4)), "zero points"),
        (_drop("qzeros"), "lacks its qzeros"),
        (_drop("scales"), "lacks its scales"),
        (_drop("qweight"), "not known here"),
        (_put("g_idx", np.zeros(7, np.int32)), "group indices"),
        (_put("g_idx", np.zeros(192, np.int32)), "other sizes"),
        (_put("g_idx", np.arange(192, dtype=np.int32)), "other sizes"),
        (_put("scales", np.full((6, 64), np.inf, np.float16)), "finite"),
        (_put("scales", np.full((6, 64), np.nan, np.float16)), "finite"),
        (_put("scales", np.ones((6, 64), np.int8)), "scales of type"),
        (_put("qweight", np.zeros((24, 64), np.int64)), "int64"),
        (_put("qweight", np.zeros(24, np.int32)), "matrix"),
        (_put("act_scales", np.ones(64, np.float16)), "not known here"),
        (_put("bias", np.ones(64, np.float16)), "no bias"),
    ],
)
def test_tensors_that_do_not_agree(change: Callable[[Tensors], None], word: str, made: Made) -> None:
    packers.rewrite(made.folder, change)
    refused(made, CheckpointError, MODULE, word)


def test_sizes_that_the_model_does_not_have(made: Made) -> None:
    smaller = packers.quantize(np.ones((32, 192), np.float32), Style())
    packers.rewrite(made.folder, lambda tensors: tensors.update(packers.gptq_tensors(MODULE, smaller, v1=True)))
    refused(made, CheckpointError, MODULE, "192 inputs and 32 outputs", "192 and 64")


def test_bits_that_the_words_do_not_have(made: Made) -> None:
    packers.configure(made.folder, bits=8)
    refused(made, CheckpointError, "model.layers", "packed for", "inputs")


def test_groups_too_fine_for_a_kernel(tmp_path: Path) -> None:
    folder = checkpoints.build("llama", tmp_path / "checkpoint", dtype="float16", **SIZES)
    tensors_of = partial(packers.gptq_tensors, v1=True)
    refused(
        packers.pack(folder, gptq(group_size=16), tensors_of, Style(group_size=16)), UnsupportedModelError, "16 inputs"
    )


def test_a_configuration_without_packed_weights(tmp_path: Path) -> None:
    folder = checkpoints.build("llama", tmp_path / "checkpoint", dtype="float16", **SIZES)
    packers.configure(folder, **gptq())
    refused(Made(folder), CheckpointError, "none is packed so")


@pytest.mark.parametrize(
    ("quantization", "word"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"load_in_8bit": True}, "unnamed"),
        (gptq(5), "5 bits"),
        (gptq(checkpoint_format="marlin"), "marlin"),
        (gptq(is_marlin_format=True), "marlin"),
        (awq(version="gemv"), "gemv"),
        (awq(zero_point=False), "zero points"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "mx_fp"}, "mx_fp"),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:llm_compressor"},
            "llm_",
        ),
        (compressed("float-quantized"), "float-quantized"),
        (compressed("marlin-24"), "marlin-24"),
        (compressed(type="float"), "float4"),
        (compressed(strategy="block"), "block"),
        (compressed(num_bits=3), "int3"),
        ({**compressed(), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({**compressed(), "transform_config": {"config_groups": {"R1": {}}}}, "rotates"),
    ],
)
def test_other_methods_and_forms(quantization: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word) as raised:
        read_scheme(quantization)
    assert "unquantized" in raised.value.hint


@pytest.mark.parametrize(
    "quantization",
    [
        gptq(bits="4"), gptq(group_size=None), gptq(dynamic=["x"]), gptq(dynamic={"(": {}}), {"quant_method": "gptq"},
        {**compressed(), "config_groups": {}}, {**compressed(), "config_groups": {"a": 1}},
        {**compressed(), "config_groups": {"a": {"targets": "Linear", "weights": {}}}}, compressed(group_size="x"),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": [1]},
    ],
)  # fmt: skip
def test_broken_configurations(quantization: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        read_scheme(quantization)


def test_packed_weights_of_another_shape_than_they_say(tmp_path: Path) -> None:
    folder = checkpoints.build("llama", tmp_path / "checkpoint", dtype="float16", **SIZES)
    made = packers.pack(folder, compressed(), partial(packers.compressed_tensors, symmetric=True))
    packers.rewrite(folder, _put("weight_shape", np.array([64, 1 << 40])))
    refused(made, CheckpointError, MODULE, "packed weights")
    packers.rewrite(folder, _put("weight_shape", np.array([-64, 192])))
    refused(made, CheckpointError, MODULE)


def test_zero_points_that_were_announced(tmp_path: Path) -> None:
    folder = checkpoints.build("llama", tmp_path / "checkpoint", dtype="float16", **SIZES)
    told = compressed(symmetric=False)
    refused(
        packers.pack(folder, told, partial(packers.compressed_tensors, symmetric=True)), CheckpointError, "zero points"
    )


def test_an_imported_folder_is_not_quantized_again(made: Made, tmp_path: Path) -> None:
    folder = convert(made.folder, tmp_path / "out")
    with pytest.raises(ArtifactError, match="quantized already") as raised:
        quantize(folder, tmp_path / "again", recipe="int4")
    assert "--dequantize" in raised.value.hint


def test_a_strange_format_for_the_rest(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int3"):
        convert(made.folder, tmp_path / "out", rest="int3")


def test_the_old_configuration_file_of_autogptq_is_read(tmp_path: Path) -> None:
    import json

    folder = checkpoints.build("llama", tmp_path / "checkpoint", dtype="float16", **SIZES)
    packers.pack(folder, {}, partial(packers.gptq_tensors, v1=True))
    (folder / "quantize_config.json").write_text(
        json.dumps({"bits": 4, "group_size": 32, "desc_act": False, "sym": True})
    )
    assert convert(folder, tmp_path / "out").manifest.quantization is not None
