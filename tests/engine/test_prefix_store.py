"""The store: what is fetched is what was kept, the budget holds for the bytes themselves, and files carry it over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.engine.cache import CacheShape, KVCache
from aiasst.engine.prefix import LEAST
from aiasst.engine.prefix_file import write
from aiasst.engine.prefix_index import NOTHING
from aiasst.engine.prefix_store import PrefixStore
from aiasst.errors import ArtifactError

SHAPE = CacheShape(2, 2, 3, np.dtype(np.float32))
LARGE = 10**9
CAPACITY = 64
PROMPT = st.builds(
    lambda stem, length, rest: tuple([stem] * length + rest),
    st.integers(0, 1), st.integers(0, 40), st.lists(st.integers(0, 2), min_size=1, max_size=20),
)  # fmt: skip


def ids(tokens: tuple[int, ...]) -> np.ndarray:
    return np.array(tokens, np.int64)


def row_of(tokens: tuple[int, ...]) -> list[np.ndarray]:
    """A cache row in which every place depends on all tokens up to it."""
    state, places = 7, []
    for token in tokens:
        state = (state * 1_000_003 + token + 1) % (2**31)
        places.append(np.random.default_rng(state).normal(size=(2 * SHAPE.layers, SHAPE.kv_heads, SHAPE.head_dim)))
    row = np.full((2 * SHAPE.layers, 1, SHAPE.kv_heads, CAPACITY, SHAPE.head_dim), np.nan, np.float32)
    for place, values in enumerate(places):
        row[:, 0, :, place] = values
    return list(row)


def fetched(store: PrefixStore, tokens: tuple[int, ...]) -> int:
    """Fetch the beginning of `tokens` and compare it with what it must be; gives its length."""
    cache = KVCache(SHAPE, 2, CAPACITY)
    found = store.find(ids(tokens))
    store.fetch(found, cache.rows(1, 1))
    for got, expected in zip(cache.rows(1, 1), row_of(tokens), strict=True):
        np.testing.assert_array_equal(got[:, :, : found.length], expected[:, :, : found.length])
    return found.length


def bytes_held(store: PrefixStore) -> int:
    return sum(array.nbytes for arrays in store._arrays.values() for array in arrays)


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(PROMPT, st.sampled_from(["keep", "fetch", "resize"]), st.integers(0, 8000)), max_size=12),
    budget=st.integers(0, 8000),
)
def test_what_is_fetched_is_what_was_kept_and_the_budget_holds(steps: list, budget: int) -> None:
    store = PrefixStore(SHAPE, budget)
    for tokens, kind, number in steps:
        if kind == "keep":
            store.keep(ids(tokens), row_of(tokens), taken=number % (len(tokens) + 1))
        elif kind == "fetch":
            fetched(store, tokens)
        else:
            budget = number
            store.resize(budget)
        assert bytes_held(store) <= store.bytes <= budget
        assert all(array.base is None for arrays in store._arrays.values() for array in arrays)


def test_a_short_beginning_is_neither_kept_nor_found() -> None:
    store = PrefixStore(SHAPE, LARGE)
    short = (1,) * (LEAST - 1)
    store.keep(ids(short), row_of(short))
    assert store.bytes == 0
    long = (1,) * LEAST
    store.keep(ids(long), row_of(long))
    assert store.find(ids((*short, 2))) == NOTHING
    assert fetched(store, (*long, 2)) == LEAST


def test_what_is_spared_is_there_afterwards() -> None:
    first, second = (1,) * 30, (1,) * 20 + (2,) * 40
    store = PrefixStore(SHAPE, 30 * SHAPE.bytes_per_token + 5000)
    store.keep(ids(first), row_of(first))
    store.keep(ids(second), row_of(second), spare=store.find(ids(first)))
    assert fetched(store, first) == 30


def test_memory_that_is_not_there_empties_the_store() -> None:
    class Full:
        base = None
        shape = (2, 40, 3)

        def __getitem__(self, place: object) -> np.ndarray:
            raise MemoryError

    store = PrefixStore(SHAPE, LARGE)
    first, second = (1,) * 30, (1,) * 20 + (2,) * 20
    store.keep(ids(first), row_of(first))
    store.keep(ids(second), [[Full()]] * 4)  # type: ignore[list-item]
    assert (store.bytes, bytes_held(store)) == (0, 0)
    store.keep(ids(first), row_of(first))
    assert fetched(store, first) == 30


@settings(max_examples=30)
@given(
    prompts=st.lists(PROMPT, min_size=1, max_size=6), taken=st.integers(0, 60), budget=st.sampled_from([LARGE, 6000])
)
def test_what_was_shared_survives_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[tuple[int, ...]], taken: int, budget: int
) -> None:
    store, path = PrefixStore(SHAPE, LARGE), tmp_path_factory.mktemp("s") / "a.kv"
    for tokens in prompts:
        store.keep(ids(tokens), row_of(tokens), taken=min(taken, len(tokens)))
    shared = store.shared()
    if not shared:
        assert store.news == 0
        return
    assert store.news == sum(len(piece.tokens) for piece in shared)
    write(path, shared, model="m", shape=SHAPE)
    again = PrefixStore(SHAPE, budget)
    read = again.load(path, "m")
    assert (read == store.news) if budget == LARGE else (read <= store.news)
    assert bytes_held(again) <= again.bytes <= budget
    assert again.news == 0
    for tokens in prompts:
        length = fetched(again, tokens)
        if budget == LARGE:
            known = store.find(ids(tokens[: min(taken, len(tokens))])).length
            assert length >= (known if known >= LEAST else 0)


def test_a_conversation_survives_in_a_file_and_another_models_does_not(tmp_path: Path) -> None:
    store, path = PrefixStore(SHAPE, LARGE), tmp_path / "a.kv"
    first, second = (1,) * 30, (1,) * 20 + (2,) * 20
    for tokens in (first, second):
        store.keep(ids(tokens), row_of(tokens))
    write(path, store.held(ids((*second, 5))), model="m", shape=SHAPE)
    again = PrefixStore(SHAPE, LARGE)
    assert again.load(path, "m") == 40
    assert fetched(again, (*second, 5)) == 40
    assert fetched(again, first) == 20
    other = PrefixStore(SHAPE, LARGE)
    with pytest.raises(ArtifactError, match="another model"):
        other.load(path, "n")
    assert other.bytes == 0


def test_loading_makes_room_and_takes_no_more(tmp_path: Path) -> None:
    store, path = PrefixStore(SHAPE, LARGE), tmp_path / "a.kv"
    long, old = (1,) * 60, (2,) * 60
    store.keep(ids(long), row_of(long))
    write(path, store.held(ids(long)), model="m", shape=SHAPE)
    tight = PrefixStore(SHAPE, 40 * (SHAPE.bytes_per_token + 8) + 1100)
    tight.keep(ids(old), row_of(old))
    assert fetched(tight, old) > 30
    read = tight.load(path, "m")
    assert 30 < read < 60
    assert fetched(tight, long) == read
    assert bytes_held(tight) <= tight.bytes <= 40 * (SHAPE.bytes_per_token + 8) + 1100
    none = PrefixStore(SHAPE, 0)
    assert none.load(path, "m") == 0
