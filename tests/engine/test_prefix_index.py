"""The tree of stored beginnings against sets of sequences: what is found, what it takes, and what goes first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aiasst.engine.prefix_index import NOTHING, PrefixIndex, Segment

TOKEN, SEGMENT = 3, 10
"""Bytes of each."""
SEQUENCE = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def index(budget: int = 10**9) -> PrefixIndex:
    return PrefixIndex(budget, bytes_per_token=TOKEN, bytes_per_segment=SEGMENT)


def ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int64)


def path(segment: Segment) -> list[int]:
    before = [] if segment.before is None else path(segment.before)
    return before + segment.tokens.tolist()


def stored(tree: PrefixIndex) -> list[list[int]]:
    return [path(segment) for segment in tree.segments()]


def in_common(first: list[int], second: list[int]) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


def check(tree: PrefixIndex) -> None:
    """What holds at any time."""
    segments = list(tree.segments())
    assert tree.bytes == sum(SEGMENT + TOKEN * len(segment.tokens) for segment in segments) <= tree.budget
    for segment in segments:
        assert len(segment.tokens) > 0
        assert 0 <= segment.taken <= len(segment.tokens)
        assert [int(child.tokens[0]) for child in segment.children.values()] == list(segment.children)
        assert all(child.parent is segment and child.used <= segment.used for child in segment.children.values())
        if segment.taken and segment.before is not None:
            assert segment.before.taken == len(segment.before.tokens)


@given(st.lists(SEQUENCE), SEQUENCE)
def test_the_longest_common_prefix_is_found_and_nothing_is_stored_twice(
    sequences: list[list[int]], wanted: list[int]
) -> None:
    tree = index()
    for tokens in sequences:
        change = tree.insert(ids(tokens))
        assert change.evicted == ()
        check(tree)
    found = tree.find(ids(wanted))
    assert found.length == max((in_common(tokens, wanted) for tokens in sequences), default=0)
    assert [t for segment, count in found.parts for t in segment.tokens[:count].tolist()] == wanted[: found.length]
    distinct = {tuple(tokens[:end]) for tokens in sequences for end in range(1, len(tokens) + 1)}
    assert sum(len(segment.tokens) for segment in tree.segments()) == len(distinct)


STEP = st.one_of(
    st.tuples(st.just("insert"), SEQUENCE, SEQUENCE),
    st.tuples(st.just("use"), SEQUENCE, st.integers(0, 12)),
    st.tuples(st.just("resize"), st.integers(0, 200), st.none()),
)


@given(st.integers(0, 200), st.lists(STEP, max_size=30))
def test_the_budget_is_kept_and_what_was_used_longest_ago_goes_first(budget: int, steps: list) -> None:
    tree = index(budget)
    for kind, first, second in steps:
        before = {id(segment): segment.used for segment in tree.segments()}
        sequences = stored(tree)
        kept: set[int] = set()
        if kind == "insert":
            spare = tree.find(ids(second))
            change = tree.insert(ids(first), spare)
            evicted = change.evicted
            assert tree.find(ids(second)).length >= spare.length
            kept = {id(s) for s, _ in (*tree.find(ids(first)).parts, *tree.find(ids(second)).parts)}
            if change.added is not None:
                assert path(change.added) == first[: change.start + len(change.added.tokens)]
                if evicted:  # what could go went only because it had to
                    least = min(len(segment.tokens) * TOKEN + SEGMENT for segment in evicted[-1:])
                    assert tree.bytes + least > budget
        elif kind == "use":
            found = tree.find(ids(first))
            tree.use(found, taken=second)
            assert sum(segment.taken for segment, _ in found.parts) >= min(found.length, second)
            evicted = ()
        else:
            budget = first
            change = tree.resize(first)
            evicted = change.evicted
            if change.shortened is not None:
                assert tree.bytes + TOKEN > budget
                kept = {id(change.shortened)}
        check(tree)
        left = [s for s in tree.segments() if not s.children and id(s) not in kept and id(s) in before]
        if evicted and left:
            assert max(s.used for s in evicted) <= min(s.used for s in left)
        assert all(a.used <= b.used for a, b in pairwise(evicted))
        for tokens in stored(tree):
            assert any(tokens == known[: len(tokens)] for known in [*sequences, first if kind == "insert" else []])


def test_a_long_sequence_is_cut_to_what_fits_behind_what_is_spared() -> None:
    tree = index(2 * SEGMENT + 10 * TOKEN + TOKEN + SEGMENT)
    tree.insert(ids([1] * 4))
    tree.insert(ids([2] * 4))
    change = tree.insert(ids([3] * 50), tree.find(ids([1] * 4)))
    assert [path(segment) for segment in change.evicted] == [[2] * 4]
    assert change.added is not None and len(change.added.tokens) == 10
    assert tree.find(ids([1] * 9)).length == 4


def test_what_hardly_fits_leaves_the_tree_as_it_was() -> None:
    tree = index(SEGMENT + 4 * TOKEN)
    tree.insert(ids([1, 2, 3, 4]))
    whole = tree.find(ids([1, 2, 3, 4]))
    assert tree.insert(ids([1, 2, 9, 9]), whole).added is None
    assert stored(tree) == [[1, 2, 3, 4]]
    assert tree.insert(ids([1, 2, 3])).added is None
    assert tree.find(ids([5])) == NOTHING


def test_a_smaller_budget_keeps_as_much_of_the_last_sequence_as_fits() -> None:
    tree = index()
    tree.insert(ids([1] * 6))
    tree.insert(ids([2] * 6))
    change = tree.resize(SEGMENT + 4 * TOKEN + 2)
    assert [path(segment) for segment in change.evicted] == [[1] * 6]
    assert change.shortened is not None and stored(tree) == [[2] * 4]
    assert tree.resize(SEGMENT + TOKEN - 1).shortened is None
    assert tree.bytes == 0


def test_a_cut_segment_shares_what_was_taken_between_its_parts() -> None:
    tree = index()
    tree.insert(ids([1, 2, 3, 4, 5]))
    tree.use(tree.find(ids([1, 2, 3, 9])), taken=3)
    tree.insert(ids([1, 2, 8]))
    assert sorted((path(s), s.taken) for s in tree.segments()) == [([1, 2], 2), ([1, 2, 3, 4, 5], 1), ([1, 2, 8], 0)]
