from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiasst.errors import ArtifactError, UsageError
from aiasst.quantize import QuantConfig
from tests.quantize import graphs


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ({"weight_bits": 4, "activation_bits": 8, "scheme": "per-channel"}, "int4-b256"),
        ({"weight_bits": 4, "scheme": "per-block"}, "int4-b128"),
        ({"weight_bits": 4, "scheme": "per-block", "block_size": 64, "zero_point": True}, "int4-b64-zp"),
        ({"weight_bits": 8, "scheme": "per-channel"}, "w8a8"),
        ({"weight_bits": 8, "scheme": "per-block"}, "int8-b128"),
        ({"weight_bits": 2}, "int2-b128"),
        ({"weight_bits": 2, "scheme": "per-block"}, "int2-b64"),
        ({"weight_bits": 16, "activation_bits": 32}, "fp16"),
    ],
)
def test_words_of_other_toolkits_become_a_format(words: dict[str, Any], label: str) -> None:
    recipe = QuantConfig(**words).recipe()
    assert recipe.default.label == label
    head = "fp16" if label == "fp16" else "int8-b128"
    assert recipe.format_of("lm_head", None, 8).label == head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weight_bits": 3}, "no 3-bit format"),
        ({"weight_bits": 4, "activation_bits": 16}, "activation_bits 16"),
        ({"weight_bits": 16}, "activation_bits 8"),
        ({"scheme": "per-tensor"}, "per-tensor"),
        ({"block_size": 64}, "per block"),
        ({"scheme": "per-block", "block_size": 512}, "512"),
        ({"weight_bits": 2, "scheme": "per-block", "block_size": 256}, "256"),
        ({"weight_bits": 8, "zero_point": True}, "zero points"),
    ],
)
def test_words_that_make_no_sense_are_refused_at_once(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        QuantConfig(**words)
    assert message in caught.value.message
    assert caught.value.hint


def test_the_calibration_file_is_recorded_and_not_claimed_to_be_used(tmp_path: Path) -> None:
    source = graphs.product(tmp_path / "m.onnx", graphs.random(256, 32))
    np.savez(tmp_path / "sample_data.npz", input_ids=np.ones((3, 16), np.int64))
    config = QuantConfig(calibration_dataset=tmp_path / "sample_data.npz")
    folder = config.apply(source)
    assert folder.path == tmp_path / "m-int4-b256"
    record = folder.manifest.quantization
    assert record is not None
    assert record.calibration is not None
    seen = record.calibration
    assert (seen.name, seen.sequences, seen.tokens, seen.used) == ("sample_data.npz", 3, 48, False)
    assert record.algorithm == "mse"


@pytest.mark.parametrize(("bits", "algorithm"), [(2, "gptq"), (4, "gptq"), (8, "mse")])
def test_few_bits_calibrate_unless_told_otherwise(bits: int, algorithm: str) -> None:
    assert QuantConfig(weight_bits=bits).recipe().algorithm == algorithm
    assert QuantConfig(weight_bits=bits, algorithm="rtn").recipe().algorithm == "rtn"


def test_a_missing_calibration_file_stops_before_the_work(tmp_path: Path) -> None:
    source = graphs.product(tmp_path / "m.onnx", graphs.random(256, 32))
    with pytest.raises(ArtifactError, match="no calibration file"):
        QuantConfig(calibration_dataset="nowhere.npz").apply(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
