"""Sampling against its definitions: full sorts, sums of probabilities, and the processors of transformers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiasst.engine.requests import Finished, Sampling
from aiasst.engine.sampling import (
    biased,
    block_sums,
    chances,
    discourage,
    draw_within,
    drawn,
    index_at,
    largest,
    penalise,
    proportions,
    restricted,
    sample,
)
from aiasst.errors import ArtifactError, PromptError
from tests.engine.fakes import Drawn

ROW = hnp.arrays(np.float32, st.integers(2, 200), elements=st.floats(-30, 30, width=32))
SETTING = st.builds(
    Sampling,
    temperature=st.floats(0.05, 3),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 63), st.floats(-100, 100), max_size=5),
    seed=st.integers(0, 2**32),
)
FILTERS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.05, 1.0, 3.0]),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
)


class Fixed:
    """A guide that always allows the same tokens."""

    def __init__(self, allowed: np.ndarray) -> None:
        self.allowed = allowed

    def accept(self, token: int) -> Finished | None:
        return None


class SpentError(Exception):
    """All numbers have been drawn."""


class Numbers:
    """A generator of these numbers."""

    def __init__(self, *numbers: float) -> None:
        self.left = list(numbers)

    def random(self) -> float:
        if not self.left:
            raise SpentError
        return self.left.pop(0)


STRATA = 400


def first_draws(row: np.ndarray, setting: Sampling) -> Counter[int]:
    """The tokens of first draws with evenly spread numbers, as far as they were kept."""
    kept: Counter[int] = Counter()
    for number in (np.arange(STRATA) + 0.5) / STRATA:
        try:
            kept[drawn(row, setting, Numbers(float(number)))] += 1  # type: ignore[arg-type]
        except SpentError:
            continue
    return kept


def assert_drawn_as(kept: Counter[int], wanted: np.ndarray) -> None:
    """First draws that were kept have the proportions of these probabilities, as far as so many can show it."""
    assert all(wanted[token] > 0 for token in kept)
    count = sum(kept.values())
    assert all(abs(kept[token] - chance * count) <= 2 + 1e-3 * count for token, chance in enumerate(wanted))


@settings(max_examples=30, deadline=None)
@given(row=ROW, count=st.integers(1, 200), temperature=st.floats(0.05, 3))
def test_top_k_keeps_the_k_largest(row: np.ndarray, count: int, temperature: float) -> None:
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    wanted = np.zeros(len(row))
    wanted[order] = proportions(row, temperature)[order]
    assert_drawn_as(first_draws(row, Sampling(top_k=count, temperature=temperature)), wanted / wanted.sum())


@settings(max_examples=30, deadline=None)
@given(row=ROW, mass=st.floats(0.01, 0.999), temperature=st.floats(0.05, 3))
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(row: np.ndarray, mass: float, temperature: float) -> None:
    weights = proportions(row, temperature).astype(np.float64)
    order = sorted(range(len(row)), key=lambda i: (-weights[i], i))
    reached = np.cumsum(weights[order]) / weights.sum()
    inside = order[: int(np.searchsorted(reached, mass)) + 1]
    wanted = np.zeros(len(row))
    wanted[inside] = weights[inside] / weights[inside].sum()
    kept = first_draws(row, Sampling(top_p=mass, temperature=temperature))
    near = np.abs(reached - mass).min() < 1e-6
    assert near or set(kept) <= set(inside)
    if not near:
        assert_drawn_as(kept, wanted)


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any),
    sixteenths=st.integers(1, 16),
    least=st.sampled_from([0, 2, 3]),
)
def test_draws_that_were_thrown_away_leave_the_proportions_as_they_are(
    weights: list[int], sixteenths: int, least: int
) -> None:
    """Every way that the numbers can fall, with its probability: fractions, so that nothing is rounded."""
    array, mass = np.array(weights, np.float32), sixteenths / 16
    got: Counter[int] = Counter()

    def follow(numbers: list[float], left: np.ndarray, chance: Fraction) -> None:
        total = int(left.sum())
        for cell in range(total):
            more = [*numbers, (cell + 0.5) / total]
            try:
                got[draw_within(array, mass, Numbers(*more), least)] += chance / total  # type: ignore[arg-type]
            except SpentError:
                at = index_at(left, block_sums(left), more[-1])
                before = (left > left[at]) | ((left == left[at]) & (np.arange(len(left)) < at))
                follow(more, left * before, chance / total)

    follow([], array * (array >= least), Fraction(1))
    inside = [index for index in whole_nucleus(array / array.sum(), mass) if weights[index] >= least]
    if max(weights) < least:
        return
    total = sum(weights[index] for index in inside)
    assert got == {index: Fraction(weights[index], total) for index in inside if weights[index]}


def whole_nucleus(probabilities: np.ndarray, mass: float) -> list[int]:
    """By definition: sorted, equal ones by index, and as many as it takes."""
    order = sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i))
    reached = np.cumsum(probabilities[order].astype(np.float64))
    return sorted(order[: min(int(np.searchsorted(reached, mass)) + 1, len(order))])


def exact_probabilities(seed: int, length: int, mean: int, steep: float, order: int) -> np.ndarray:
    """They add up to one, and no sum of them is rounded: multiples of a power of two, so that no order of summing matters."""
    parts = (np.random.default_rng(seed).exponential(size=length) ** steep * mean).astype(np.int64)
    scale = 2 ** int(parts.sum()).bit_length()
    missing = scale - int(parts.sum())
    parts += missing // length
    parts[length // 3] += missing % length
    parts = np.sort(parts)[::order] if order else parts
    probabilities = (parts / scale).astype(np.float32)
    assert probabilities.sum(dtype=np.float64) == 1
    return np.ascontiguousarray(probabilities)


LARGE = st.builds(
    exact_probabilities,
    st.integers(0, 2**16),
    st.sampled_from([4097, 9000, 20_000]),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.1, 1, 2]),
    st.sampled_from([0, 1, -1]),
)


@settings(max_examples=60)
@given(values=LARGE, mass=st.integers(1, 15).map(lambda n: n / 16) | st.integers(1, 2**20 - 1).map(lambda n: n / 2**20))
def test_the_nucleus_of_a_large_vocabulary_is_the_one_of_the_definition(values: np.ndarray, mass: float) -> None:
    order = np.lexsort((np.arange(len(values)), -values))
    count = len(whole_nucleus(values, mass))
    running = np.cumsum(values.astype(np.float64))
    for place in {0, count // 2, count - 1, count, (count + len(values)) // 2} & set(range(len(values))):
        index = int(order[place])
        if values[index] == 0:
            continue
        middle = Numbers(float(running[index] - values[index] / 2))
        if place < count:
            assert draw_within(values, mass, middle) == index  # type: ignore[arg-type]
        else:
            with pytest.raises(SpentError):
                draw_within(values, mass, middle)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    assert set(draw_within(values, mass, random) for _ in range(5)) <= set(order[:count].tolist())


@settings(max_examples=60)
@given(
    values=LARGE,
    count=st.sampled_from([1, 2, 20, 300, 512, 513, 3000]),
)
def test_the_largest_of_a_large_vocabulary_are_those_of_the_definition(values: np.ndarray, count: int) -> None:
    values[::7] = -np.inf
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert largest(values, count).tolist() == sorted(wanted)


def test_a_tiny_temperature_and_a_forbidden_token_are_no_trouble() -> None:
    row = np.array([-3e38, 1, 1.5, -np.inf], np.float32)
    assert set(first_draws(row, Sampling(temperature=1e-300))) == {2}


def test_infinite_logits_share_the_draws() -> None:
    assert first_draws(np.array([1, np.inf, -np.inf, np.inf], np.float32), Sampling()) == {1: 200, 3: 200}


@settings(max_examples=30, deadline=None)
@given(row=ROW, min_p=st.floats(0.01, 1), top_p=st.sampled_from([1.0, 0.9]))
def test_min_p_keeps_what_is_likely_enough(row: np.ndarray, min_p: float, top_p: float) -> None:
    likely = proportions(row, 1.0)
    kept = first_draws(row, Sampling(min_p=min_p, top_p=top_p))
    assert set(kept) <= set(np.flatnonzero(likely >= np.float32(min_p)).tolist())
    assert int(row.argmax()) in kept


@settings(deadline=None)
@given(values=hnp.arrays(np.float32, st.integers(1, 50), elements=st.integers(-3, 3)), count=st.integers(1, 60))
def test_largest_breaks_ties_by_index(values: np.ndarray, count: int) -> None:
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert largest(values, count).tolist() == sorted(wanted)


@settings(deadline=None)
@given(
    rows=hnp.arrays(np.float32, (4, 64), elements=st.floats(-9, 9, width=32)),
    drawn=st.lists(SETTING, min_size=4, max_size=4),
    allowed=hnp.arrays(bool, 64).filter(np.any),
)
def test_a_batch_equals_its_rows_alone(rows: np.ndarray, drawn: list[Sampling], allowed: np.ndarray) -> None:
    drawn[1] = Sampling(temperature=0)

    def row(i: int) -> Drawn:
        guide = Fixed(allowed) if i == 2 else None
        return Drawn(drawn[i], np.arange(i + 3) // 2, i, np.random.default_rng(drawn[i].seed or 0), guide)

    together = sample(rows, [row(i) for i in range(4)])
    for i in range(4):
        assert sample(rows[i : i + 1], [row(i)])[0] == together[i]


@settings(deadline=None)
@given(
    row=hnp.arrays(np.float32, 64, elements=st.sampled_from([-np.inf, -3e38, -2.0, 0.0, 1.0, 3e38])),
    allowed=hnp.arrays(bool, 64).filter(np.any),
    setting=SETTING | FILTERS,
    answer=st.lists(st.integers(0, 63), max_size=9),
    uniform=st.sampled_from([0.0, 0.3, 1 - 2**-53]),
)
def test_a_guide_lets_no_forbidden_token_through(
    row: np.ndarray, allowed: np.ndarray, setting: Sampling, answer: list[int], uniform: float
) -> None:
    with np.errstate(all="ignore"):
        token = sample(row[None], [drawn_at(uniform, setting, answer, Fixed(allowed))])[0]
    assert allowed[token]


@settings(deadline=None)
@given(
    row=hnp.arrays(np.float32, 64, elements=st.floats(-500, 500, width=32)),
    banned=st.sets(st.integers(0, 63), min_size=1, max_size=63),
    allowed=st.none() | hnp.arrays(bool, 64).filter(np.any),
    setting=FILTERS,
    uniform=st.sampled_from([0.0, 0.3, 1 - 2**-53]),
)
def test_a_bias_of_minus_a_hundred_is_never_drawn_while_anything_else_is_possible(
    row: np.ndarray, banned: set[int], allowed: np.ndarray | None, setting: Sampling, uniform: float
) -> None:
    setting = dataclasses.replace(setting, logit_bias=dict.fromkeys(banned, -100))
    guide = None if allowed is None else Fixed(allowed)
    token = int(sample(row[None], [drawn_at(uniform, setting, [], guide)])[0])
    possible = set(range(64)) if allowed is None else set(np.flatnonzero(allowed).tolist())
    assert token in (possible - banned or possible)


def drawn_at(uniform: float, setting: Sampling, answer: list[int], guide: Fixed | None) -> Drawn:
    """A row whose generator draws this number."""

    class Generator:
        def random(self) -> float:
            return uniform

    return Drawn(setting, np.array(answer, np.int64), 0, Generator(), guide)  # type: ignore[arg-type]


@settings(deadline=None)
@given(rows=hnp.arrays(np.float32, (3, 50), elements=st.floats(-9, 9, width=32)))
def test_greedy_without_penalties_is_argmax(rows: np.ndarray) -> None:
    wanted = Sampling(temperature=0, frequency_penalty=0, presence_penalty=0, repetition_penalty=1, logit_bias={})
    seen = Drawn(wanted, np.arange(20), 5)
    assert sample(rows, [seen] * 3).tolist() == rows.argmax(axis=1).tolist()


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    rows = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)

    def drawn(seed: int) -> list[int]:
        generator = np.random.default_rng(seed)
        return [int(sample(rows, [Drawn(Sampling(), generator=generator)])[0]) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_draws_follow_the_probabilities() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    generator = np.random.default_rng(0)
    counts = np.bincount([drawn(row, Sampling(), generator) for _ in range(4000)], minlength=4)
    # Four standard deviations of a binomial count.
    assert np.abs(counts / 4000 - np.exp(row)).max() < 4 * np.sqrt(0.25 / 4000)


def test_the_ends_of_the_uniform_number_draw_something_possible() -> None:
    weights = np.array([0, 1, 0], np.float32)
    assert [index_at(weights, block_sums(weights), number) for number in (0.0, 1 - 2**-53)] == [1, 1]


@settings(deadline=None)
@given(
    weights=hnp.arrays(np.float32, st.integers(1, 2000), elements=st.sampled_from([0.0, 0.25, 1.0, 3.0])),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_where_the_running_sum_passes_the_number(weights: np.ndarray, uniform: float) -> None:
    weights[len(weights) // 2] = 1
    running = np.cumsum(weights.astype(np.float64))
    wanted = int(np.searchsorted(running, uniform * running[-1], side="right"))
    assert index_at(weights, block_sums(weights), uniform) == wanted


def test_greedy_takes_the_first_of_equal_ones() -> None:
    rows = np.array([[1, 3, 3], [5, 1, 2]], np.float32)
    greedy = Sampling(temperature=0)
    assert sample(rows, [Drawn(greedy)] * 2).tolist() == [1, 0]


def test_the_penalty_divides_positive_and_multiplies_negative_logits_once() -> None:
    row = np.array([2, -2, 1, 0], np.float32)
    assert penalise(row, np.array([0, 0, 1]), 2.0).tolist() == [1, -4, 1, 0]
    assert row.tolist() == [2, -2, 1, 0]


@settings(deadline=None)
@given(
    row=hnp.arrays(np.float32, 20, elements=st.floats(-9, 9, width=32)),
    answer=st.lists(st.integers(0, 19), max_size=40),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
)
def test_frequency_counts_and_presence_does_not(
    row: np.ndarray, answer: list[int], frequency: float, presence: float
) -> None:
    got = discourage(row, np.array(answer, np.int64), frequency, presence)
    # OpenAI: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    for token in range(20):
        count = answer.count(token)
        assert got[token] == pytest.approx(row[token] - count * frequency - (count > 0) * presence, abs=1e-3)


def test_frequency_and_presence_leave_the_prompt_alone() -> None:
    setting = Sampling(temperature=0, frequency_penalty=1, presence_penalty=1)
    rows = np.array([[1, 3, 2]], np.float32)
    assert sample(rows, [Drawn(setting, np.array([1, 1, 1, 0]), 3)])[0] == 1
    assert sample(rows, [Drawn(setting, np.array([1, 1, 1, 1]), 3)])[0] == 2


def test_a_bias_is_added_and_the_row_stays() -> None:
    row = np.array([1, 2, 3], np.float32)
    assert biased(row, {0: 5, 2: -1.5}).tolist() == [6, 2, 1.5]
    assert row.tolist() == [1, 2, 3]


def test_where_all_is_banned_the_bans_fall() -> None:
    row = np.array([1, 2, 3], np.float32)
    assert restricted(row, None, [0, 1, 2]).tolist() == [1, 2, 3]
    assert restricted(row, np.array([True, False, False]), [0]).tolist() == [1, -np.inf, -np.inf]
    assert restricted(row, np.array([True, True, False]), [0]).tolist() == [-np.inf, 2, -np.inf]


@settings(deadline=None)
@given(
    row=hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-60, 60, width=32)),
    count=st.integers(0, 20),
    token=st.integers(0, 59),
)
def test_chances_are_the_logarithms_of_the_softmax(row: np.ndarray, count: int, token: int) -> None:
    token %= len(row)
    exact = row.astype(np.float64)
    wanted = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    got = chances(row, token, count)
    assert got.chosen == pytest.approx(wanted[token], abs=1e-4)
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    assert [index for index, _ in got.likeliest] == order
    np.testing.assert_allclose([chance for _, chance in got.likeliest], wanted[order], atol=1e-4)


def test_what_is_impossible_has_a_chance_that_json_can_write() -> None:
    assert chances(np.array([0, -np.inf], np.float32), 1, 2).likeliest == ((0, 0.0), (1, -9999.0))


def test_nan_is_an_error_and_no_token() -> None:
    rows = np.array([[1, np.nan, 2]], np.float32)
    with pytest.raises(ArtifactError, match="NaN"):
        sample(rows, [Drawn(Sampling(temperature=0))])


@pytest.mark.parametrize(
    "field,value",
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("temperature", -1), ("temperature", float("nan")), ("top_k", -1),
        ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("repetition_penalty", 0), ("seed", -1), ("temperature", True),
        ("frequency_penalty", 2.1), ("presence_penalty", -3), ("presence_penalty", float("inf")), ("logprobs", -1),
        ("logprobs", 21), ("logprobs", True),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(PromptError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize("bias", [{-1: 1}, {"3": 1}, {3: 101}, {3: float("nan")}, {3: "1"}])
def test_a_bias_out_of_range_is_refused(bias: dict) -> None:
    with pytest.raises(PromptError, match="logit_bias"):
        Sampling(logit_bias=bias)


def test_settings_with_a_bias_can_be_compared_and_hashed() -> None:
    assert Sampling(logit_bias={1: 2}) == Sampling(logit_bias={1: 2.0}) != Sampling()
    assert len({Sampling(logit_bias={1: 2}), Sampling(logit_bias={1: 2})}) == 1


@settings(max_examples=40, deadline=None)
@given(row=hnp.arrays(np.float32, 64, elements=st.floats(-9, 9, width=32), unique=True), setting=SETTING)
def test_filters_equal_those_of_transformers(row: np.ndarray, setting: Sampling) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    seen = np.array([3, 5, 7])
    history = torch.tensor([seen.tolist()])
    penalty = processors.RepetitionPenaltyLogitsProcessor(setting.repetition_penalty)
    # In float64 from here on, so that no token falls on the other side of a filter's border by rounding.
    scores = penalty(history, torch.from_numpy(row.copy())[None]).double()
    chain = [
        processors.TemperatureLogitsWarper(setting.temperature),
        *([processors.TopKLogitsWarper(setting.top_k)] if setting.top_k else []),
        processors.TopPLogitsWarper(setting.top_p),
        processors.MinPLogitsWarper(setting.min_p),
    ]
    for processor in chain:
        scores = processor(history, scores)
    wanted = torch.softmax(scores.double(), -1)[0].numpy()
    assert_drawn_as(first_draws(penalise(row, seen, setting.repetition_penalty), setting), wanted)
