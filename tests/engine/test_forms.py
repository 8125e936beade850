"""A folder of two forms, opened as a device config says; and that an engine on a pair answers as on either form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.device import CoresDecision, CountDecision, Decisions, TextDecision, TwinDecision
from aiasst.artifacts.model_folder import (
    FileRecord,
    Manifest,
    ModelFolder,
    Quantization,
    Shape,
    Source,
    Twin,
    record_files,
    write_manifest,
)
from aiasst.engine.engine import Decoder, Engine
from aiasst.engine.forms import forms_in_words, forms_of, open_decoder
from aiasst.engine.requests import Request, Sampling
from aiasst.errors import ArtifactError
from aiasst.runtime.pair import PairedSession
from aiasst.runtime.session import DecoderSession
from tests.runtime.graphs import CONTEXT, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, tiny_decoder

FORM = Quantization(recipe="w8a8", algorithm="rtn", bits_per_weight=8)
PROMPTS = [
    tuple(np.random.default_rng(n).integers(0, VOCABULARY, size).tolist()) for n, size in enumerate((40, 3, 17, 60))
]


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    """Two forms with the same weights."""
    tiny_decoder(tmp_path / "model.onnx")
    tiny_decoder(tmp_path / "twin.onnx")
    (tmp_path / "twin.onnx.data").write_bytes(b"")
    shape = Shape(
        model_type="tiny", layers=LAYERS, hidden_size=HIDDEN, vocab_size=VOCABULARY, context_length=CONTEXT, heads=HEADS,
        kv_heads=KV_HEADS, head_dim=HEAD_DIM,
    )  # fmt: skip
    manifest = Manifest(
        aiasst_version="0",
        task="text-generation",
        exporter="none",
        source=Source(kind="folder", name="test"),
        shape=shape,
        weights={},
        twin=Twin(quantization=FORM, weights={}),
        files=record_files(tmp_path),
    )
    write_manifest(tmp_path, manifest)
    return ModelFolder.open(tmp_path)


def decisions(twin: TwinDecision | None) -> Decisions:
    one = CountDecision(value=1, reason="a test")
    return Decisions(
        provider=TextDecision(value="cpu", reason="a test"),
        threads=one,
        affinity=CoresDecision(value=None, reason="a test"),
        slots=one,
        memory_ceiling_bytes=CountDecision(value=2**40, reason="a test"),
        twin=twin,
    )


def answers(session: Decoder) -> list[list[int]]:
    engine = Engine(session, slots=3, chunk=16)
    for number, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(number), prompt, Sampling(max_tokens=20, temperature=0.9, seed=number)))
    got: list[list[int]] = [[] for _ in PROMPTS]
    while engine.busy:
        for event in engine.step():
            if event.token is not None:
                got[int(event.request_id)].append(event.token)
    return got


@pytest.mark.parametrize("from_rows", [1, 2, 12, 1000])
def test_forms_with_the_same_numbers_answer_alike(folder: ModelFolder, from_rows: int) -> None:
    alone = open_decoder(folder, decisions(None))
    pair = open_decoder(folder, decisions(TwinDecision(use=True, from_rows=from_rows, reason="a test")))
    assert isinstance(alone, DecoderSession) and isinstance(pair, PairedSession)
    assert pair.from_rows == from_rows and forms_of(pair) == (pair.first, pair.twin) and forms_of(alone) == (alone,)
    assert answers(pair) == answers(alone)


def test_only_what_is_decided_is_opened(folder: ModelFolder) -> None:
    unused = decisions(TwinDecision(use=False, from_rows=12, reason="there is no room"))
    assert isinstance(open_decoder(folder, unused), DecoderSession)
    assert forms_in_words(folder, unused) == "one form of two runs: there is no room"
    used = decisions(TwinDecision(use=True, from_rows=9, reason="it is fast"))
    assert forms_in_words(folder, used) == "two forms run, w8a8 from 9 rows up: it is fast"
    assert "says nothing" in forms_in_words(folder, decisions(None))


def test_a_folder_of_one_form_has_nothing_to_tell(folder: ModelFolder) -> None:
    files = {name: record for name, record in folder.manifest.files.items() if not name.startswith("twin")}
    write_manifest(folder.path, folder.manifest.model_copy(update={"twin": None, "files": files}))
    plain = ModelFolder.open(folder.path)
    used = decisions(TwinDecision(use=True, from_rows=9, reason="it is fast"))
    assert isinstance(open_decoder(plain, used), DecoderSession) and forms_in_words(plain, used) == ""
    with pytest.raises(ArtifactError, match="no second form"):
        DecoderSession.open(plain, twin=True)


def test_a_damaged_second_form_is_told_clearly(folder: ModelFolder) -> None:
    folder.twin_graph.unlink()
    with pytest.raises(ArtifactError, match=r"incomplete: twin\.onnx is missing"):
        ModelFolder.open(folder.path)
    folder.twin_graph.write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="8 bytes, the manifest says"):
        ModelFolder.open(folder.path)
    files = folder.manifest.files | {"twin.onnx": FileRecord(bytes=8, sha256="0" * 64)}
    write_manifest(folder.path, folder.manifest.model_copy(update={"files": files}))
    damaged = ModelFolder.open(folder.path)
    with pytest.raises(ArtifactError, match=r"twin\.onnx"):
        open_decoder(damaged, decisions(TwinDecision(use=True, from_rows=9, reason="a test")))
    del files["twin.onnx"]
    write_manifest(folder.path, folder.manifest.model_copy(update={"files": files}))
    with pytest.raises(ArtifactError, match="tells of a second form") as failure:
        ModelFolder.open(folder.path)
    assert "--twin" in failure.value.hint
