"""Stop strings in a stream, however it is cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aiasst.engine.stop import StopFilter

TEXT = st.text("ab\n", max_size=30)


@given(
    text=TEXT, cuts=st.lists(st.integers(0, 30)), stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)
)
def test_pieces_end_before_the_first_stop_string(text: str, cuts: list[int], stops: list[str]) -> None:
    stream = StopFilter(tuple(stops))
    shown, ended = "", False
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in itertools.pairwise(borders):
        piece, ended = stream.feed(text[begin:end])
        shown += piece
        assert not any(stop in shown for stop in stops)
        if ended:
            seen = text[:end]
            assert shown == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
            return
    shown += stream.flush()
    assert shown == text
    assert not any(stop in text for stop in stops)


def test_text_that_may_begin_a_stop_string_waits() -> None:
    stream = StopFilter(("\n\nUser:",))
    assert stream.feed("hello\n") == ("hello", False)
    assert stream.feed("\nU") == ("", False)
    assert stream.feed("nder") == ("\n\nUnder", False)
    assert stream.feed("\n\nUser: hi") == ("", True)


def test_without_stop_strings_nothing_waits() -> None:
    assert StopFilter(()).feed("text") == ("text", False)
    assert StopFilter(("",)).feed("text") == ("text", False)
