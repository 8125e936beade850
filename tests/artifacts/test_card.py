"""The accuracy card: what it says, and that a folder with one is whole whenever its writing is cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiasst.artifacts import card as cards
from aiasst.artifacts.card import (
    CARD_NAME,
    PAGE_NAME,
    AccuracyCard,
    FormScores,
    MeasuredText,
    PairScores,
    TaskScores,
    bits_of_both,
    bits_per_weight,
    read_card,
    write_card,
)
from aiasst.artifacts.model_folder import (
    Manifest,
    ModelFolder,
    Quantization,
    Source,
    Twin,
    Weight,
    record_files,
    write_manifest,
)
from aiasst.artifacts.shipped import default_model
from aiasst.errors import ArtifactError

STABLE = (
    "perplexity_before", "perplexity_after", "kl_mean", "kl_p999", "top1_agreement", "retained_percent", "bytes",
    "bits_per_weight",
)  # fmt: skip
TEXT = MeasuredText(
    name="held-out.jsonl", shipped=True, tokens=16384, passages=32, window=512, scored=8192, sha256="ab"
)
FACTS: dict[str, Any] = {
    "aiasst_version": "0", "bytes": 4_741_278, "bits_per_weight": 4.84, "provider": "cpu", "threads": 2,
    "onnxruntime_version": "1.31.1", "cpu": "a CPU",
}  # fmt: skip
DECODER = AccuracyCard(
    model="story-int4", original="story", model_task="text-generation", perplexity_before=53.609, perplexity_after=54.94,
    kl_mean=0.0157, kl_p999=0.2594, kl_max=0.68, top1_agreement=0.9032, accuracy_before=0.2544, accuracy_after=0.2535,
    retained_percent=99.62, bytes_before=29_669_057, text=TEXT, **FACTS,
)  # fmt: skip
ALONE = AccuracyCard(
    model="my story", original=None, model_task="text-generation", perplexity_after=54.94, accuracy_after=0.2535,
    text=TEXT.model_copy(update={"name": "a book.txt", "shipped": False}), **FACTS,
)  # fmt: skip
ENCODER = AccuracyCard(
    model="minilm-int8", original="minilm", model_task="feature-extraction", similarity_mean=0.9991, similarity_min=0.99,
    text=TEXT.model_copy(update={"name": "sts.csv", "shipped": False, "window": None, "scored": None, "passages": 600}),
    scores=TaskScores(
        task="sts", data="sts.csv", rows=300, sha256="cd", before={"spearman": 0.8203, "pearson": 0.8274},
        after={"spearman": 0.8197, "pearson": 0.8268},
    ), **FACTS,
)  # fmt: skip

_ALONE = FormScores(
    perplexity_after=53.7, kl_mean=0.0011, kl_p999=0.0201, kl_max=0.1, top1_agreement=0.9712, accuracy_after=0.2541,
    retained_percent=99.9,
)  # fmt: skip
PAIR = DECODER.model_copy(
    update={
        "pair": PairScores(
            **_ALONE.model_dump() | {"kl_mean": 0.0123, "top1_agreement": 0.9112}, twin=_ALONE, bytes=11_235_563,
            bits_per_weight=11.78,
        )
    }
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    manifest = Manifest(
        aiasst_version="0",
        task="text-generation",
        exporter="none",
        source=Source(kind="folder", name="test"),
        shape=None,
        weights={"w": Weight(role="other", layer=None, shape=(2, 3), format="fp32", bytes=24)},
        files=record_files(tmp_path),
    )
    write_manifest(tmp_path, manifest)
    return ModelFolder.open(tmp_path)


@pytest.mark.parametrize("card", [DECODER, ALONE, ENCODER, PAIR])
def test_a_card_travels_with_its_folder(folder: ModelFolder, card: AccuracyCard) -> None:
    assert read_card(folder) is None
    written = write_card(folder, card)
    opened = ModelFolder.open(folder.path)
    assert opened == written
    opened.check_hashes()
    assert read_card(opened) == card
    assert list(opened.manifest.files) == sorted([CARD_NAME, PAGE_NAME, "model.onnx"])


def test_a_new_card_replaces_the_old(folder: ModelFolder) -> None:
    for card in (DECODER, ENCODER, ALONE):
        folder = write_card(folder, card)
    opened = ModelFolder.open(folder.path)
    opened.check_hashes()
    assert read_card(opened) == ALONE
    assert len(list(opened.path.iterdir())) == 4


@pytest.mark.parametrize("step", range(4))
def test_whenever_it_is_cut_short_the_folder_can_be_opened(
    folder: ModelFolder, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_card(folder, DECODER)
    calls = 0

    def cut_short(wrapped: Any) -> Any:
        def call(*arguments: Any) -> None:
            nonlocal calls
            if calls == step:
                raise KeyboardInterrupt
            calls += 1
            wrapped(*arguments)

        return call

    monkeypatch.setattr(cards, "write_manifest", cut_short(cards.write_manifest))
    monkeypatch.setattr(cards, "write_text_atomically", cut_short(cards.write_text_atomically))
    with pytest.raises(KeyboardInterrupt):
        write_card(folder, ENCODER)
    opened = ModelFolder.open(folder.path)
    opened.check_hashes()
    assert read_card(opened) in (None, DECODER)


def test_the_names_that_others_build_on() -> None:
    for card in (DECODER, ALONE, ENCODER):
        assert set(STABLE) <= json.loads(card.to_json()).keys()
    assert json.loads(ALONE.to_json())["kl_mean"] is None


def test_the_page_says_what_was_measured_and_how() -> None:
    page = DECODER.to_page()
    assert "| perplexity | 53.609 → 54.940 (+2.48%) |" in page
    assert "| retained accuracy | 99.62% |" in page
    assert "the held-out text that comes with aiasst, in 32 windows of 512" in page
    assert "`cpu` of ONNX Runtime 1.31.1 on a CPU" in page
    assert "    aiasst eval story-int4 --against story --tokens 16384\n" in page
    assert "similarity" not in page


def test_what_was_not_measured_is_not_on_the_page() -> None:
    page = ALONE.to_page()
    assert "| perplexity | 54.940 |" in page
    assert "KL" not in page
    assert "aiasst eval 'my story' --text 'a book.txt' --tokens 16384" in page


def test_the_page_of_an_encoder() -> None:
    page = ENCODER.to_page()
    assert "| spearman | 0.8203 → 0.8197 | rank correlation" in page
    assert "600 texts of sts.csv" in page
    assert "perplexity" not in page
    assert "aiasst eval minilm-int8 --against minilm --task sts --data sts.csv" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "missing key 'model'"),
        (DECODER.to_json().replace("kl_mean", "kl_average"), "unknown key 'kl_average'"),
        (DECODER.to_json().replace("0.0157", "NaN"), "'kl_mean'"),
    ],
)
def test_a_card_that_is_none_is_refused(folder: ModelFolder, content: str, message: str) -> None:
    folder = write_card(folder, DECODER)
    (folder.path / CARD_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        read_card(folder)


def test_bits_per_weight_is_the_plans() -> None:
    manifest = ModelFolder.open(default_model()).manifest
    assert manifest.quantization is not None
    assert bits_per_weight(manifest) == manifest.quantization.bits_per_weight


def test_the_page_tells_of_both_forms() -> None:
    page = PAIR.to_page()
    assert "| KL divergence, mean | 0.0157 nats |" in page  # the first form's own, as without a second
    assert "| both forms: KL divergence, mean | 0.0123 nats (0.0011 nats) |" in page
    assert "| both forms: top-1 agreement | 91.12% (97.12%) |" in page
    assert "11,235,563 bytes" in page and "| both forms: bits per weight | 11.78 |" in page
    assert "both forms" not in DECODER.to_page()
    alone = FormScores(perplexity_after=53.7, accuracy_after=0.25)
    unmeasured = PairScores(**alone.model_dump(), twin=alone, bytes=1, bits_per_weight=1)
    words = ALONE.model_copy(update={"pair": unmeasured}).to_page()
    assert "both forms: perplexity" in words and "both forms: KL" not in words


def test_bits_of_both_count_what_is_shared_once(folder: ModelFolder) -> None:
    def weight(nbytes: int, shared_with: str | None = None) -> Weight:
        return Weight(role="other", layer=None, shape=(10, 10), format="x", bytes=nbytes, shared_with=shared_with)

    form = Quantization(recipe="w8a8", algorithm="rtn", bits_per_weight=8)
    rows = {"a": weight(100), "b": weight(0, "b"), "head": weight(0, "b")}
    manifest = folder.manifest.model_copy(
        update={
            "weights": {"a": weight(50), "b": weight(100), "head": weight(0, "b")},
            "twin": Twin(quantization=form, weights=rows),
        }
    )
    assert bits_per_weight(manifest) == 8 * 150 / 200
    assert bits_of_both(manifest) == 8 * 250 / 200


def test_every_key_is_explained() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "card.md"
    explained = {line.split("`")[1] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| `")}
    nested = {"text": MeasuredText, "scores": TaskScores, "pair": PairScores}
    keys = set(AccuracyCard.model_fields)
    keys |= {f"{name}.{key}" for name, document in nested.items() for key in document.model_fields}
    assert explained == keys
