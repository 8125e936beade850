"""Conformance of encoders: every architecture with every head computes what torch computes, padded and alone, and runs in w8a8."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.engine.encode import Encoder, Prepared, TextInput
from aiasst.errors import ExportError
from aiasst.profile import quick_config
from aiasst.quantize import quantize
from aiasst.run import encode_file
from aiasst.runtime.encoder import EncoderSession
from tests import checkpoints

HEADS: dict[str, tuple[str, dict[str, Any], int]] = {
    "feature-extraction": ("AutoModel", {}, 64),
    "text-classification": ("AutoModelForSequenceClassification", {"num_labels": 3}, 3),
    "cross-encoder": ("AutoModelForSequenceClassification", {"num_labels": 1}, 1),
    "token-classification": ("AutoModelForTokenClassification", {"num_labels": 5}, 5),
    "fill-mask": ("AutoModelForMaskedLM", {}, 105),
}
"""Head → its class in transformers, what its configuration says, and the width of its answers."""
# A cross-encoder is a classifier with one label; it is enough where pairs have types, where they have none, and where the head is
# another one.
CASES = [
    (name, head)
    for name in checkpoints.ENCODERS
    for head in HEADS
    if head != "cross-encoder" or name in ("bert", "roberta", "modernbert")
]
ROLES = {
    "qkv", "o", "up", "down", "norm", "bias", "embed", "position_embed", "type_embed", "gate_up", "rotary", "classifier",
}  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A checkpoint and what became of it."""

    checkpoint: Path
    folder: ModelFolder
    auto_class: str

    def original(self) -> Any:
        import transformers

        return (
            getattr(transformers, self.auto_class).from_pretrained(self.checkpoint, attn_implementation="eager").eval()
        )


Converter = Callable[[str, str], Converted]


@pytest.fixture(autouse=True)
def short_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy cards of a short text: what they say is tested elsewhere."""
    monkeypatch.setattr("aiasst.evaluate.encoders.DEFAULT_TOKENS", 256)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """An architecture with a head, by whichever exporter carries it."""
    made: dict[tuple[str, str], Converted] = {}

    def get(name: str, head: str) -> Converted:
        if (name, head) not in made:
            place = tmp_path_factory.mktemp("encoders")
            auto_class, own, _ = HEADS[head]
            # Tracing takes as long as there are layers, and one shows the head; ModernBERT's second one attends locally.
            few = {"num_hidden_layers": 2 if name == "modernbert" else 1} if head != "feature-extraction" else {}
            few |= {"n_layers": 1} if few and name == "distilbert" else {}
            source = checkpoints.build(name, place / "checkpoint", auto_class=auto_class, **own, **few)
            made[name, head] = Converted(source, convert(source, place / "model"), auto_class)
        return made[name, head]

    return get


def rows(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(4, checkpoints.VOCABULARY, length) for length in lengths]


def answer_of_torch(model: Any, ids: list[np.ndarray], types: list[np.ndarray] | None, pad: int) -> np.ndarray:
    import torch

    longest = max(map(len, ids))
    feeds = {
        "input_ids": [[*row.tolist(), *[pad] * (longest - len(row))] for row in ids],
        "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in ids],
    }
    if types is not None:
        feeds["token_type_ids"] = [[*row.tolist(), *[0] * (longest - len(row))] for row in types]
    with torch.inference_mode():
        answer = model(**{name: torch.tensor(values) for name, values in feeds.items()})
    return (answer.logits if "logits" in answer else answer.last_hidden_state).numpy()


@pytest.mark.parametrize(("name", "head"), CASES)
def test_computes_what_torch_computes(name: str, head: str, encoder: Converter) -> None:
    made = encoder(name, head)
    manifest = made.folder.manifest
    assert manifest.task == ("text-classification" if head == "cross-encoder" else head)
    assert manifest.encoding is not None and not manifest.encoding.beyond
    assert manifest.verification is not None
    assert manifest.verification.max_abs_diff <= manifest.verification.tolerance
    assert manifest.shape is not None
    assert manifest.shape.context_length == {"roberta": 255, "mpnet": 254}.get(name, 256)
    roles = {weight.role for weight in manifest.weights.values()}
    assert {"qkv", "o", "down", "embed"} <= roles
    assert roles - ROLES <= ({"other"} if name == "electra" else set())  # its embedding is projected to the hidden size

    session, original = EncoderSession.open(made.folder), made.original()
    assert session.width == HEADS[head][2]
    pad = manifest.tokens.pad
    assert pad is not None
    for ids in (rows(1), rows(2, 2), rows(9, 40, 3, 17), rows(70, 12), rows(manifest.shape.context_length, 5, 200)):
        types = None
        if "token_type_ids" in session.graph.input_names:
            types = [np.arange(len(row)) * 2 // len(row) for row in ids]
        expected = answer_of_torch(original, ids, types, pad)
        found, mask = session.run(ids, types)
        kept = mask > 0 if found.ndim == 3 else slice(None)
        np.testing.assert_allclose(found[kept], expected[kept], atol=1e-4)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_default_recipe_quantizes_it_and_it_runs(name: str, head: str, encoder: Converter, tmp_path: Path) -> None:
    made = encoder(name, head)
    small = quantize(made.folder, tmp_path / "w8a8")
    assert small.manifest.quantization is not None and small.manifest.quantization.recipe == "w8a8"
    ids = rows(9, 40, 3, 17)
    exact, mask = EncoderSession.open(made.folder).run(ids)
    rounded, _ = EncoderSession.open(small).run(ids)
    kept = mask > 0 if exact.ndim == 3 else slice(None)
    spread = np.linalg.norm(exact[kept] - exact[kept].mean())
    assert np.linalg.norm(rounded[kept] - exact[kept]) < 0.15 * spread

    told = [{"text": "the r~in"}, {"text": "in the house " * 40 + "~"}, {"text": "the ~", "pair": "rain"}]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    summary = encode_file(small, texts, tmp_path / "answers.jsonl")
    first, long, pair = map(json.loads, (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    key = {"feature-extraction": "vector", "text-classification": "labels", "cross-encoder": "score",
           "token-classification": "tokens", "fill-mask": "masks"}[head]  # fmt: skip
    assert np.isfinite(first["score"] if key == "score" else len(first[key]))
    reads_pairs = key in ("labels", "score")
    assert (key in pair) == reads_pairs
    if head == "fill-mask":
        assert "that are read" in long["error"]["message"]  # the mask stands behind what is cut off
        assert [len(fills) for fills in first["masks"]] == [5]
    else:
        assert long["cut_from"] > 256
        assert summary.cut == 1
    assert summary.errors == (not reads_pairs) + (head == "fill-mask")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_cross_encoder_reads_pairs_as_its_tokenizer_puts_them_together(name: str, encoder: Converter) -> None:
    made = encoder(name, "cross-encoder")
    judge = Encoder(made.folder, quick_config(made.folder))
    passages = ["the rain in Spain", "no", "a man in the house " * 9]
    prepared = judge.prepare([TextInput("who is there", passage) for passage in passages])
    tokens = [each.tokens for each in prepared if isinstance(each, Prepared)]
    assert [each.types.max() for each in tokens] == [1, 1, 1]
    types = [each.types for each in tokens] if name == "bert" else None  # RoBERTa has one type
    pad = made.folder.manifest.tokens.pad or 0
    logits = answer_of_torch(made.original(), [each.ids for each in tokens], types, pad)[:, 0]
    assert judge.relevance("who is there", passages) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "fill-mask"])
@pytest.mark.parametrize("name", ["bert", "deberta_v2"])
def test_a_head_that_nobody_trained_is_not_made_up(name: str, task: str, encoder: Converter, tmp_path: Path) -> None:
    bare = encoder(name, "feature-extraction").checkpoint
    with pytest.raises(ExportError, match=f"no head for {task}") as caught:
        convert(bare, tmp_path / "model", task=task)
    assert "--task feature-extraction" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_pooler_that_a_classifier_needs_is_not_made_up(encoder: Converter, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoints.build("bert", tmp_path / "bert", auto_class="AutoModelForSequenceClassification")
    weights = load_file(source / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="pooler"):
        convert(source, tmp_path / "model")
    # The hidden states do not go through it.
    assert convert(source, tmp_path / "body", task="feature-extraction").manifest.task == "feature-extraction"


def test_an_encoder_converts_for_the_task_it_was_trained_for_where_a_body_is_asked(tmp_path: Path) -> None:
    """all-mpnet-base-v2 says MPNetForMaskedLM, has no such head, and is an embedder by its modules.json."""
    source = checkpoints.build("bert", tmp_path / "bert")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}), encoding="utf-8")
    modules = [{"path": "", "type": "m.Transformer"}, {"path": "1_Pooling", "type": "m.Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert convert(source, tmp_path / "model").manifest.task == "feature-extraction"
