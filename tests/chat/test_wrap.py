"""Streaming line breaks: nothing is lost, lines fit, words stay whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiasst.chat.wrap import WordWrap

WORDS = st.lists(st.text("abcdé", min_size=1, max_size=6), min_size=1, max_size=30)


def wrapped(pieces: list[str], width: int) -> str:
    wrap = WordWrap(lambda: width)
    return "".join(map(wrap.feed, pieces)) + wrap.flush()


def test_lines_break_between_words() -> None:
    assert wrapped(["The wolf wa", "s gone to the wo", "od"], 12) == "The wolf was\ngone to the\nwood"


def test_a_word_is_held_until_it_is_complete() -> None:
    wrap = WordWrap(lambda: 80)
    assert wrap.feed("The wo") == "The"
    assert wrap.feed("lf") == ""
    assert wrap.feed(" was") == " wolf"
    assert wrap.flush() == " was"


def test_line_breaks_of_the_text_stay() -> None:
    assert wrapped(["One\n\nTwo  ", "\n three"], 80) == "One\n\nTwo\n three"


def test_scripts_without_spaces_break_anywhere() -> None:
    assert wrapped(["昔々ある所に"], 6) == "昔々あ\nる所に"


def test_a_word_longer_than_the_line_is_left_to_the_terminal() -> None:
    assert wrapped(["a " + "b" * 20 + " c"], 8) == "a\n" + "b" * 20 + "\nc"


@given(WORDS, st.integers(6, 40), st.integers(1, 7))
def test_nothing_is_lost_and_every_line_fits(words: list[str], width: int, step: int) -> None:
    text = " ".join(words)
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    shown = wrapped(pieces, width)
    assert shown.split() == words
    assert all(len(line) <= width for line in shown.split("\n"))
    assert shown == wrapped([text], width)
