"""Finding passages: what is near is found, vectors are computed once, and another corpus or model is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.encoding import Encoding
from aiasst.artifacts.model_folder import ModelFolder
from aiasst.convert import convert
from aiasst.engine.encode import Encoder
from aiasst.errors import ArtifactError, PromptError, UsageError
from aiasst.profile import quick_config
from aiasst.progress import Progress
from aiasst.search import Search, nearest, store
from aiasst.search.corpus import Corpus
from tests import checkpoints

TEXTS = ("the cat sat", "interest rates", "the cat sat on a mat", "zzz 999", "rain and wind")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("bert")
    return convert(checkpoints.build("bert", folder / "checkpoint"), folder / "bert")


@pytest.fixture
def encoder(bert: ModelFolder) -> Encoder:
    return Encoder(bert, quick_config(bert))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "corpus.jsonl", [{"id": f"p{n}", "text": text} for n, text in enumerate(TEXTS)])


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_passage_finds_itself_first(encoder: Encoder, corpus: Path) -> None:
    opened = Search.open(encoder, corpus)
    assert (opened.fresh, opened.exact, opened.cut) == (True, True, 0)
    vectors = encoder.encode(TEXTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for number, text in enumerate(TEXTS):
        hits = opened.find(text, 3)
        assert (hits[0].id, hits[0].line, hits[0].text) == (f"p{number}", number + 1, text)
        wanted = np.argsort(-(vectors @ vectors[number]), kind="stable")[:3]
        assert [hit.id for hit in hits] == [f"p{index}" for index in wanted]
        assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert len(opened.find("cat", 99)) == len(TEXTS)


def test_the_corpus_is_embedded_once(encoder: Encoder, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Progress] = []
    first = Search.open(encoder, corpus, progress=events.append).find("the cat")
    assert events[-1].done == len(TEXTS)
    monkeypatch.setattr(store, "_embed", lambda *arguments, **options: pytest.fail("embedded again"))
    again = Search.open(encoder, corpus)
    assert not again.fresh
    assert again.find("the cat") == first


def test_another_corpus_is_embedded_anew(encoder: Encoder, corpus: Path) -> None:
    Search.open(encoder, corpus)
    write(corpus, [{"id": "only", "text": "something else"}])
    opened = Search.open(encoder, corpus)
    assert opened.fresh
    assert [hit.id for hit in opened.find("the cat")] == ["only"]


def test_an_interrupted_embedding_goes_on(encoder: Encoder, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "WINDOW", 2)
    whole = Search.open(encoder, corpus).find("rain", 5)
    seen: list[int] = []

    def stop(event: Progress) -> None:
        if event.stage == "embed":
            seen.append(int(event.done))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Search.open(encoder, corpus, restart=True, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        Search.open(encoder, corpus, progress=stop)
    assert seen == [2, 4]
    opened = Search.open(encoder, corpus)
    assert opened.find("rain", 5) == whole


def test_texts_that_are_cut_are_counted(bert: ModelFolder, corpus: Path) -> None:
    short = replace(bert, manifest=bert.manifest.model_copy(update={"encoding": Encoding(max_tokens=10)}))
    opened = Search.open(Encoder(short, quick_config(short)), corpus)
    assert opened.cut == 4
    assert Search.open(Encoder(short, quick_config(short)), corpus).cut == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a", "text": "x"}\n{broken\n', "line 2 is not valid JSON"),
        ('{"id": "a"}\n', "line 1 has no text"),
        ('{"id": [1], "text": "x"}\n', "an id that is neither"),
        ('{"text": "\\ud800"}\n', "line 1 is not valid JSON in UTF-8"),
        ("\n\n", "has no row"),
    ],
)
def test_a_corpus_with_a_bad_line_is_refused(encoder: Encoder, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        Search.open(encoder, path)
    assert not list(tmp_path.glob("*.vectors/*/index.json"))


def test_what_cannot_be_searched(encoder: Encoder, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no corpus"):
        Search.open(encoder, tmp_path / "absent.jsonl")
    with pytest.raises(PromptError, match="the query is empty"):
        Search.open(encoder, corpus).find("  ")
    encoder.kind = "labels"
    with pytest.raises(UsageError, match="makes no vectors"):
        Search.open(encoder, corpus)


def test_lines_are_found_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes('\ufeff{"text": "first"}\r\n\n  {"id": 7, "text": "zweité"}'.encode())
    found = Corpus.open(path)
    assert [(p.line, p.id, p.text) for p in found.passages([1, 0])] == [(3, 7, "zweité"), (1, 1, "first")]


def test_the_index_finds_what_comparing_everything_finds(tmp_path: Path) -> None:
    if not nearest.can_index():
        pytest.skip("usearch is not installed")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest.write_index(vectors, tmp_path / "hnsw.usearch")
    index, exact = nearest.Approximate.open(vectors, tmp_path / "hnsw.usearch"), nearest.Exact(vectors)
    same = 0
    for query in vectors[:50] + 0.3 * rng.normal(size=(50, 24)).astype(np.float32):
        (rows, scores), (wanted, best) = index.find(query, 10), exact.find(query, 10)
        same += len(set(rows.tolist()) & set(wanted.tolist()))
        assert scores[0] == pytest.approx(best[0])
    assert same >= 0.97 * 500
    with pytest.raises(ArtifactError, match="damaged"):
        nearest.Approximate.open(vectors[:7], tmp_path / "hnsw.usearch")
    (tmp_path / "junk").write_bytes(b"nonsense" * 40)
    with pytest.raises(ArtifactError, match="damaged"):
        nearest.Approximate.open(vectors, tmp_path / "junk")


def test_a_large_corpus_gets_an_index(encoder: Encoder, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nearest.can_index():
        pytest.skip("usearch is not installed")
    exact = Search.open(encoder, corpus).find("the cat", 5)
    monkeypatch.setattr("aiasst.search.EXACT_ROWS", 3)
    opened = Search.open(encoder, corpus)
    assert not opened.exact
    assert opened.find("the cat", 5) == exact
    assert Search.open(encoder, corpus, exact=True).exact
