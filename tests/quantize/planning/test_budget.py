from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.errors import BudgetRefused, UsageError
from aiasst.quantize.planning.budget import Agreement, Budget, Workload, parse_bytes, refuse_loss


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.1GB", 1_100_000_000),
        ("800 MB", 800_000_000),
        ("6GiB", 6 << 30),
        ("42", 42),
        ("3g", 3_000_000_000),
        (".5kb", 500),
    ],
)
def test_sizes_in_words(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "1.1 apples", "-3GB", "1,1GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


def test_a_workload_reads_as_it_is_written() -> None:
    assert Workload.parse("4x512+128") == Workload(4, 512, 128)
    assert str(Workload(4, 512, 128)) == "4x512+128"
    for text in ("4x512", "0x512+128", "4x512+0", "many"):
        with pytest.raises(UsageError):
            Workload.parse(text)


@pytest.mark.parametrize(
    "limits", [{"max_bytes": 0}, {"target_bpw": -1.0}, {"max_kld": -0.1}, {"min_top1": 93.0}, {"token_ms": math.nan}]
)
def test_limits_that_make_no_sense(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Budget(**limits)  # type: ignore[arg-type]


def test_a_limit_that_says_nothing_of_the_model_is_refused() -> None:
    for limits in ({"max_kld": 0.1}, {"min_top1": 0.9}, {"token_ms": 20.0}):
        Budget(**limits).refuse_other_kind(encoder=False)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            Budget(**limits).refuse_other_kind(encoder=True)  # type: ignore[arg-type]
    Budget(min_similarity=0.99, max_bytes=1).refuse_other_kind(encoder=True)
    with pytest.raises(UsageError, match="none"):
        Budget(min_similarity=0.99).refuse_other_kind(encoder=False)
    with pytest.raises(UsageError, match="no cosine"):
        Budget(min_similarity=99)


def test_an_encoder_is_held_against_its_similarity() -> None:
    limit = Budget(min_similarity=0.99)
    facts = {"kl_mean": None, "top1_agreement": None, "nbytes": 1, "bits_per_weight": 8.0}
    limit.check(**facts, similarity=0.995)  # type: ignore[arg-type]
    with pytest.raises(BudgetRefused, match=r"0\.9800 is less than 0\.99") as refused:
        limit.check(**facts, similarity=0.98)  # type: ignore[arg-type]
    assert "--min-similarity 0.98" in refused.value.hint
    with pytest.raises(BudgetRefused, match="could be measured"):
        limit.check(**facts)  # type: ignore[arg-type]
    assert limit.most_loss(Agreement()) == pytest.approx(0.02)


def test_which_limits_need_a_plan() -> None:
    assert Budget().is_empty
    assert Budget(max_bytes=1).needs_planning
    assert not Budget(max_kld=0.1).needs_planning
    assert Budget(max_kld=0.1).limits_loss


@given(st.floats(0.1, 2), st.floats(0, 0.5))
def test_agreement_and_divergence_go_back_and_forth(slope: float, kl: float) -> None:
    agreement = Agreement(slope)
    top1 = agreement.top1_of(kl)
    if top1 > 0:
        assert agreement.kl_of(top1) == pytest.approx(kl, abs=1e-9)


def test_agreement_is_fitted_on_the_careful_side() -> None:
    kl = [0.01, 0.04, 0.09, 1e-9]
    fitted = Agreement.fitted(kl, [1 - 0.7 * math.sqrt(x) for x in kl[:-1]] + [0.0])
    assert fitted.slope == pytest.approx(0.7)
    assert Agreement.fitted([], []).slope > 0


def test_a_finished_model_is_held_against_the_limits() -> None:
    budget = Budget(max_bytes=1000, max_kld=0.01, min_top1=0.9)
    budget.check(kl_mean=0.01, top1_agreement=0.9, nbytes=1000, bits_per_weight=4.5)
    with pytest.raises(BudgetRefused, match=r"0\.0201 is more than 0\.01.*89\.00%") as refusal:
        budget.check(kl_mean=0.0201, top1_agreement=0.89, nbytes=1000, bits_per_weight=4.5)
    assert "--max-kld 0.021 or --min-top1 0.89" in refusal.value.hint
    with pytest.raises(BudgetRefused, match="more than 1 kB"):
        budget.check(kl_mean=None, top1_agreement=None, nbytes=1001, bits_per_weight=4.5)


def test_a_refusal_says_what_would_be_possible() -> None:
    error = refuse_loss(0.01, 0.0234, Agreement(), 5_000_000)
    assert error.exit_code == 3
    assert "--max-kld 0.024" in error.hint
    assert "5 MB" in error.hint
