"""One ceiling over all models: what each may take, and who makes room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiasst.serve.models.memory import Held, Needs, ceilings, to_unload

NEEDS = st.builds(Needs, weights=st.integers(1, 1000), least_cache=st.integers(0, 50), most_cache=st.integers(50, 2000))


@given(st.integers(1, 6000), st.lists(NEEDS, min_size=1, max_size=5))
def test_where_all_fit_they_fit_together_and_nobody_takes_more_than_it_can_use(total: int, needs: list[Needs]) -> None:
    given_ = ceilings(total, needs)
    assert all(each <= need.weights + need.most_cache for each, need in zip(given_, needs, strict=True))
    assert all(each <= max(total, need.least) for each, need in zip(given_, needs, strict=True))
    # An equal part may be less than what one needs at least; with parts that are large enough nothing is ever unloaded.
    left = total - sum(need.weights for need in needs)
    if left // len(needs) >= max(need.least_cache for need in needs):
        assert sum(given_) <= total
        assert all(each >= need.least for each, need in zip(given_, needs, strict=True))


@given(
    st.integers(1, 3000),
    st.integers(1, 1000),
    st.lists(st.builds(Held, st.integers(1, 500), st.none() | st.floats(0, 100)), max_size=6),
    st.floats(0, 50),
)
def test_what_is_unloaded_makes_room_and_is_idle(total: int, wanted: int, held: list[Held], after: float) -> None:
    taken = sum(each.bytes for each in held)
    may = [i for i, each in enumerate(held) if each.idle_seconds is not None and each.idle_seconds >= after]
    chosen = to_unload(total, wanted, held, after_seconds=after)
    if chosen is None:
        assert total - taken + sum(held[i].bytes for i in may) < wanted
        return
    assert set(chosen) <= set(may)
    assert total - taken + sum(held[i].bytes for i in chosen) >= wanted
    # None is unloaded in vain: without the last of them it would not fit.
    assert not chosen or total - taken + sum(held[i].bytes for i in chosen[:-1]) < wanted
    kept = [held[i].idle_seconds for i in may if i not in chosen]
    assert all(held[i].idle_seconds >= idle for i in chosen for idle in kept)
