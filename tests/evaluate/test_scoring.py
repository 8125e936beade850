"""Scores on labelled data: correlations against their laws and against formulas, and what is said of files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiasst.errors import ArtifactError, UsageError
from aiasst.evaluate.scoring import macro_f1, pearson, ranks, read_labelled, read_pairs, spearman

VALUES = hnp.arrays(np.float64, 12, elements=st.integers(-9, 9).map(float))
LABELS = {"id2label": {"0": "bad", "1": "good"}}


def test_equal_values_share_their_rank() -> None:
    assert ranks(np.array([10, 30, 20, 20, 5])).tolist() == [2, 5, 3.5, 3.5, 1]


def test_spearman_by_hand() -> None:
    """1 - 6 sum d² / (n (n² - 1)), which holds without ties."""
    assert spearman(np.array([1, 2, 3, 4, 5]), np.array([2, 1, 4, 3, 5])) == pytest.approx(1 - 6 * 4 / (5 * 24))


@given(first=VALUES, second=VALUES)
def test_correlations_keep_their_laws(first: np.ndarray, second: np.ndarray) -> None:
    assume(np.ptp(first) and np.ptp(second))
    for correlation in (pearson, spearman):
        found = correlation(first, second)
        assert -1 - 1e-9 <= found <= 1 + 1e-9
        assert found == pytest.approx(correlation(second, first))
        assert correlation(first, -second) == pytest.approx(-found)
    assert spearman(np.exp(first), second) == pytest.approx(spearman(first, second))
    assert pearson(3 * first + 1, second) == pytest.approx(pearson(first, second))
    assert pearson(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])


@given(first=VALUES, second=VALUES)
def test_spearman_is_that_of_others(first: np.ndarray, second: np.ndarray) -> None:
    stats = pytest.importorskip("scipy.stats")
    assume(np.ptp(first) and np.ptp(second))
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_what_is_constant_ranks_nothing() -> None:
    assert spearman(np.ones(4), np.arange(4)) == 0


def test_f1_of_each_label_counts_alike() -> None:
    wanted, got = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert macro_f1(wanted, got) == pytest.approx((0.8 + 2 / 3) / 2)
    assert macro_f1(wanted, wanted) == 1


def test_pairs_and_their_score(tmp_path: Path) -> None:
    path = tmp_path / "sts.csv"
    path.write_bytes(b'\xef\xbb\xbfsentence1,sentence2,score\r\n"a, b",c,5.0\r\nd,"e\r\nf",0\r\n\r\ng,h,2.5,more\r\n')
    pairs = read_pairs(path)
    assert (pairs.data, pairs.rows) == ("sts.csv", 3)
    assert pairs.texts == ("a, b", "d", "g", "c", "e\r\nf", "h")
    assert pairs.scores.tolist() == [5, 0, 2.5]
    right, left = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    alike = [right, right, right, right, left, right + left]
    assert pairs.score(alike)["spearman"] == pytest.approx(1)


def test_labels_are_numbers_or_the_checkpoints_names(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("text,label\nfine,good\nawful,0\nhm,1\n", encoding="utf-8")
    labelled = read_labelled(path, LABELS)
    assert labelled.labels.tolist() == [1, 0, 1]
    logits = [np.array(row, np.float32) for row in ([0, 1], [1, 0], [1, 0])]
    assert labelled.score(logits) == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("premise,hypothesis,label\na,b,good\nc,d,0\n", [1, 0]),
        ("a,b,good\nc,d,bad\n", [1, 0]),
        ("a,0,b\nc,1,d\n", None),
        ("text,label,source\na,1,x\nc,bad,x\n", None),
    ],
)
def test_pairs_have_their_label_in_the_third_column(tmp_path: Path, text: str, labels: list[int] | None) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    found = read_labelled(path, LABELS)
    if labels is None:
        assert found.texts == ("a", "c")
        assert found.labels.tolist() == ([0, 1] if "label" not in text else [1, 0])
    else:
        assert found.texts == (("a", "b"), ("c", "d"))
        assert found.labels.tolist() == labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no data file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a,b,1\nc,d\n", "line 2 is no pair"),
        (b"a,b,1\nc,d,many\n", "line 2 is no pair"),
        (b"a,b,1\nc,d,nan\n", "line 2 is no pair"),
        (b"a,b,1\n", "1 pairs"),
        (b"", "0 pairs"),
        (b'"a,b,1\n', "not valid CSV"),
    ],
)
def test_a_file_without_pairs_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "sts.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_pairs(path)


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    for content, message in (("text,label\n", "no labelled text"), ("a\n", "line 1 is no text")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ArtifactError, match=message):
            read_labelled(path, LABELS)
    path.write_text("a,0\nb,ugly\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2 has the label 'ugly'") as refused:
        read_labelled(path, LABELS)
    assert refused.value.hint == "its labels are bad, good"
