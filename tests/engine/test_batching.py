"""Batches by length: every text once, little padding, the budget kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiasst.engine.batching import batches


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 2048))
def test_every_text_runs_once_within_the_budget(lengths: list[int], budget: int) -> None:
    found = batches(lengths, budget)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    # Between batches as inside them lengths only fall, so nobody is padded to a length that others could have had.
    flat = [lengths[index] for batch in found for index in batch]
    assert flat == sorted(flat, reverse=True)


def test_texts_of_a_length_keep_their_order() -> None:
    assert batches([3, 9, 3, 9], 100) == [[1, 3, 0, 2]]
    assert batches([3, 9, 3, 9], 9) == [[1], [3], [0, 2]]
