"""Cards of real models: decoders of several architectures, encoders, classifiers, and pairs that cannot be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import AiasstError, ArtifactError, UsageError
from aiasst.evaluate.decoders import prepare_windows
from aiasst.evaluate.fitness import finite, why_unmeasurable
from aiasst.evaluate.measure import cpu_name, measure_card
from aiasst.evaluate.perplexity import DecoderScorer, compare
from aiasst.evaluate.scoring import TaskData
from aiasst.evaluate.texts import DEFAULT_TOKENS
from aiasst.progress import Progress
from aiasst.runtime.session import DecoderSession

Pair = tuple[ModelFolder, ModelFolder]
Tiny = Callable[..., Pair]

PROSE = (
    "There was once a miller who left no more estate to the three sons he had than his mill, his ass and his cat. "
    "The partition was soon made. Neither the clerk nor the attorney was sent for.\n"
) * 12


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_decoder_beside_its_original(tiny: Tiny, prose: Path, name: str) -> None:
    original, small = tiny(name)
    events: list[Progress] = []
    card = measure_card(small, original, text=prose, tokens=600, progress=events.append)
    windows = prepare_windows(small, prose, 600)
    assert windows.ids.shape == (2, 256)  # the context of these models
    sessions = [DecoderScorer(DecoderSession.open(folder)) for folder in (original, small)]
    by_hand = compare(*sessions, windows.text.ids, window=256)
    assert card.perplexity_before == pytest.approx(by_hand.reference.value, rel=1e-4)
    assert card.perplexity_after == pytest.approx(by_hand.other.value)
    assert card.kl_mean == pytest.approx(by_hand.mean_kl, rel=1e-3, abs=1e-6)
    assert card.kl_mean is not None and card.kl_p999 is not None and card.kl_max is not None
    assert 0 < card.kl_mean < card.kl_p999 <= card.kl_max < 1
    assert card.top1_agreement is not None and card.top1_agreement > 0.8
    assert (card.model, card.original, card.model_task) == ("int8", "original", "text-generation")
    assert (card.bytes, card.bytes_before) == (small.weight_bytes, original.weight_bytes)
    assert small.manifest.quantization is not None
    assert card.bits_per_weight == small.manifest.quantization.bits_per_weight
    assert card.text is not None
    assert (card.text.name, card.text.tokens, card.text.scored, card.text.shipped) == ("prose.txt", 512, 256, False)
    assert card.text.sha256 == windows.text.sha256
    assert card.similarity_mean is None
    assert events[-1] == Progress("evaluate", 2, 2)


def test_a_model_is_no_distance_from_itself(story: Pair, prose: Path) -> None:
    card = measure_card(story[1], story[1], text=prose, tokens=256)
    assert card.perplexity_before == card.perplexity_after
    assert (card.kl_mean, card.kl_max, card.top1_agreement, card.retained_percent) == (0, 0, 1, 100)


def test_the_story_model_in_eight_bits(story: Pair, prose: Path) -> None:
    card = measure_card(story[1], story[0], text=prose)
    assert card.perplexity_after == pytest.approx(card.perplexity_before, rel=0.02)
    assert card.perplexity_after is not None and card.perplexity_after < 400
    assert card.kl_mean is not None and 0 < card.kl_mean < 0.005
    assert card.top1_agreement is not None and card.top1_agreement > 0.9


def test_alone_a_decoder_has_a_perplexity_and_nothing_else(story: Pair, prose: Path) -> None:
    card = measure_card(story[1], text=prose, tokens=512)
    assert card.perplexity_after is not None and card.accuracy_after is not None
    measured = (card.perplexity_before, card.kl_mean, card.top1_agreement, card.retained_percent, card.original)
    assert measured == (None,) * 5


def test_an_original_that_is_no_folder(story: Pair, prose: Path) -> None:
    """As where a model is too large to be in memory: whatever scores the windows will do."""
    scorer = DecoderScorer(DecoderSession.open(story[0]))

    class Watched:
        seen: list[np.ndarray]

        def __init__(self) -> None:
            self.seen = []

        def score(self, window: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            self.seen.append(window)
            yield from scorer.score(window)

    watched, windows = Watched(), prepare_windows(story[1], prose, 256)
    card = measure_card(story[1], watched, text=windows, name="small", original="big", bytes_before=7)
    assert (card.model, card.original, card.bytes_before) == ("small", "big", 7)
    assert np.array_equal(np.stack(watched.seen), windows.ids)
    folder = measure_card(story[1], story[0], text=prose, tokens=256)
    assert card.kl_mean == pytest.approx(folder.kl_mean, rel=1e-3)


def test_the_held_out_text_is_the_default(story: Pair) -> None:
    windows = prepare_windows(story[1])
    assert windows.shipped
    assert windows.length == 512
    assert 20 * 512 <= windows.ids.size <= DEFAULT_TOKENS


@pytest.mark.parametrize(
    ("tokens", "message"), [(None, "prose.txt has .* tokens, and one window needs 512"), (4, "4 tokens are too few")]
)
def test_a_text_that_is_too_short(story: Pair, tmp_path: Path, tokens: int | None, message: str) -> None:
    (tmp_path / "prose.txt").write_text("Once upon a time.", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        measure_card(story[1], text=tmp_path / "prose.txt", tokens=tokens)


def test_pairs_that_cannot_be_compared(tiny: Tiny, story: Pair, prose: Path, tmp_path: Path) -> None:
    llama, bert = tiny("llama")[0], tiny("bert")[0]
    with pytest.raises(UsageError, match=r"vocabulary of 4096 tokens, .* one of 105"):
        measure_card(story[0], llama, text=prose)
    with pytest.raises(UsageError, match=r"is for text-generation, .* for feature-extraction"):
        measure_card(llama, bert, text=prose)
    other = Path(shutil.copytree(llama.path, tmp_path / "other"))
    words = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(UsageError, match=r"the tokenizers of .* differ"):
        measure_card(llama, replace(llama, path=other), text=prose)


def test_folders_that_cannot_be_measured(tiny: Tiny, tmp_path: Path) -> None:
    llama = tiny("llama")[0]
    foreign = replace(llama, manifest=llama.manifest.model_copy(update={"shape": None}))
    assert "foreign graph" in why_unmeasurable(foreign)
    bare = Path(shutil.copytree(llama.path, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    for folder in (foreign, replace(llama, path=bare)):
        with pytest.raises(ArtifactError, match="cannot be measured"):
            measure_card(folder)
        with pytest.raises(ArtifactError, match="cannot be measured"):
            measure_card(llama, folder)


def test_a_model_whose_answers_are_no_numbers(story: Pair) -> None:
    assert finite(1.5, story[0]) == 1.5
    with pytest.raises(ArtifactError, match="no numbers"):
        finite(float("nan"), story[0])


def test_minilm_keeps_its_vectors_and_its_score(minilm: Pair, tmp_path: Path) -> None:
    sts = tmp_path / "sts.csv"
    rows = [
        ("A girl is styling her hair.", "A girl is brushing her hair.", 2.5),
        ("A plane is taking off.", "An air plane is taking off.", 5.0),
        ("A man is playing a flute.", "A man is eating pasta.", 0.4),
        ("Three men are playing chess.", "Two men are playing chess.", 2.6),
        ("A cat sleeps.", "Interest rates rose.", 0.0),
    ]
    sts.write_text("".join(f"{a},{b},{score}\n" for a, b, score in rows), encoding="utf-8")
    card = measure_card(minilm[1], minilm[0], task=TaskData("sts", sts))
    assert card.similarity_mean is not None and card.similarity_min is not None
    assert 0.99 < card.similarity_min < card.similarity_mean < 1
    assert card.scores is not None and card.scores.before is not None
    assert card.scores.rows == 5
    assert card.scores.after["spearman"] >= 0.9
    assert card.scores.after["pearson"] == pytest.approx(card.scores.before["pearson"], abs=0.02)
    assert card.text is not None
    assert (card.text.name, card.text.passages, card.text.window) == ("sts.csv", 10, None)
    assert card.perplexity_after is None
    alone = measure_card(minilm[1], task=TaskData("sts", sts))
    assert alone.scores is not None and alone.scores.before is None
    assert alone.scores.after == card.scores.after
    assert alone.text is None and alone.similarity_mean is None
    lines = measure_card(
        minilm[1], minilm[0], text=_write(tmp_path / "lines.txt", "One.\n\nTwo men.\nThree."), tokens=9
    )
    assert lines.text is not None
    assert (lines.text.passages, lines.text.tokens) == (2, 9)


def test_stsb_of_minilm(minilm: Pair, tmp_path: Path) -> None:
    """Its published Spearman on all pairs is 82.03 percent."""
    data = Path(__file__).parents[3] / "shared/data/stsb/stsb-en-test.csv"
    if not data.is_file():
        pytest.skip("the sentence pairs of STS-B are not here")
    pairs = data.read_text(encoding="utf-8").splitlines(keepends=True)
    scores = measure_card(minilm[1], task=TaskData("sts", _write(tmp_path / "sts.csv", "".join(pairs[::10])))).scores
    assert scores is not None
    assert scores.after["spearman"] == pytest.approx(0.82, abs=0.05)


def test_a_classifier_is_scored_by_its_labels(tiny: Tiny, tmp_path: Path) -> None:
    original, small = tiny("bert", auto_class="AutoModelForSequenceClassification", num_labels=3)
    data = _write(tmp_path / "labels.csv", "text,label\nthe rain,LABEL_0\nthe sun,1\nand snow,2\nthe wind,LABEL_1\n")
    card = measure_card(small, original, task=TaskData("classification", data))
    assert card.model_task == "text-classification"
    assert card.scores is not None
    assert card.scores.after["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert set(card.scores.after) == {"accuracy", "f1"}
    assert card.top1_agreement in (0.75, 1)
    with pytest.raises(UsageError, match="embeds none"):
        measure_card(small, task=TaskData("sts", data))


def test_a_cross_encoder_is_measured_by_its_scores(tiny: Tiny, tmp_path: Path) -> None:
    original, small = tiny("bert", auto_class="AutoModelForSequenceClassification", num_labels=1)
    card = measure_card(small, original, text=_write(tmp_path / "lines.txt", "the rain\nthe sun\nand snow\nthe wind\n"))
    assert card.score_rank_correlation is not None and card.score_change is not None
    assert 0 <= card.score_change < 1
    assert card.similarity_mean is None and card.top1_agreement is None
    assert card.text is not None and card.text.passages == 3
    assert "order of scores" in card.to_page()
    assert measure_card(original, original, text=tmp_path / "lines.txt").score_rank_correlation == pytest.approx(1)
    data = _write(tmp_path / "sts.csv", "the rain,the sun,1\nand snow,the wind,3\nthe sun,the sun,5\n")
    scored = measure_card(small, original, task=TaskData("sts", data)).scores
    assert scored is not None and set(scored.after) == {"spearman", "pearson"}
    with pytest.raises(UsageError, match="classifies no texts"):
        measure_card(small, task=TaskData("classification", data))


def test_a_classifier_of_pairs_reads_both_texts(tiny: Tiny, tmp_path: Path) -> None:
    original, small = tiny("bert", auto_class="AutoModelForSequenceClassification", num_labels=3)
    data = _write(tmp_path / "nli.csv", "premise,hypothesis,label\nthe rain,the sun,0\nand snow,the wind,2\n")
    card = measure_card(small, original, task=TaskData("classification", data))
    assert card.scores is not None and card.scores.rows == 2
    single = _write(tmp_path / "single.csv", "premise,label\nthe rain,0\nand snow,2\n")
    alone = measure_card(small, original, task=TaskData("classification", single))
    assert card.text is not None and alone.text is not None
    assert card.text.tokens > alone.text.tokens


def test_an_encoder_wants_an_original_or_a_task(minilm: Pair, story: Pair, tmp_path: Path) -> None:
    data = _write(tmp_path / "sts.csv", "a,b,1\nc,d,2\n")
    asked: list[tuple[str, Callable[[], object]]] = [
        ("has nothing to be measured by", lambda: measure_card(minilm[1])),
        ("classifies no texts", lambda: measure_card(minilm[1], task=TaskData("classification", data))),
        ("there is no task 'nli'", lambda: measure_card(minilm[1], task=TaskData("nli", data))),
        ("--task is for encoders", lambda: measure_card(story[1], task=TaskData("sts", data))),
        ("no sentence to measure on", lambda: measure_card(minilm[1], minilm[0], text=data.with_suffix(".txt"))),
    ]
    _write(tmp_path / "sts.txt", "\n")
    for message, ask in asked:
        with pytest.raises(AiasstError, match=message):
            ask()


def test_the_cpu_has_a_name(tmp_path: Path) -> None:
    cpuinfo = _write(tmp_path / "cpuinfo", "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: another\n")
    assert cpu_name(cpuinfo) == "A CPU @ 2 GHz"
    assert cpu_name(_write(cpuinfo, "Features: neon\n")) != ""
    assert cpu_name(tmp_path / "absent") != ""


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
