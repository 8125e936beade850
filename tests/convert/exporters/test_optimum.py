"""The optimum exporter: where it cannot be used it says why; where it can, it gives what torch gives."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import onnx_ir as ir
import pytest
import transformers

from aiasst.artifacts import signature
from aiasst.convert import convert
from aiasst.convert.exporters import load
from aiasst.convert.sources import resolve
from aiasst.errors import ExportError
from tests import checkpoints

exporter = load("optimum")
usable, reason = exporter.available()
needs_optimum = pytest.mark.skipif(not usable, reason=reason)


def test_available_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("optimum.exporters.onnx") is None:
        assert exporter.available() == (False, "optimum-onnx is not installed (it needs transformers before 4.58)")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optimum" else real(name, *rest)
    )
    assert exporter.available() == (False, "optimum is not installed")


def test_a_transformers_too_new_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.23.0")
    assert exporter.available() == (False, "optimum-onnx needs transformers before 4.58, 5.23.0 is installed")


@needs_optimum
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3", "smollm3", "gpt2", "bert"])
def test_it_computes_what_the_original_computes(name: str, tmp_path: Path) -> None:
    folder = convert(checkpoints.build(name, tmp_path / "checkpoint"), tmp_path / "model", exporter="optimum")
    proof = folder.manifest.verification
    assert proof is not None
    assert proof.max_abs_diff < 1e-4


@needs_optimum
def test_a_decoder_keeps_its_contract(tmp_path: Path) -> None:
    folder = checkpoints.build("llama", tmp_path)
    with resolve(str(folder)) as checkpoint:
        assert exporter.supports(checkpoint, "text-generation")[0]
        assert not exporter.supports(checkpoint, "fill-mask")[0]
        graph: ir.Graph = exporter.export(checkpoint, "text-generation").graph
    layers = transformers.AutoConfig.from_pretrained(folder).num_hidden_layers
    assert sum(node.op_type == "GroupQueryAttention" for node in graph) == layers
    pasts = [past for past, _ in signature.cache_pairs(layers)]
    assert [value.name for value in graph.inputs] == [signature.INPUT_IDS, signature.ATTENTION_MASK, *pasts]


@needs_optimum
def test_positions_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.build("gemma2", tmp_path)
    with resolve(str(folder)) as checkpoint, pytest.raises(ExportError, match="positions cannot be followed"):
        exporter.export(checkpoint, "text-generation")
