"""Pieces of text from a stream of ids, for the two families of tokenizers."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from aiasst.artifacts.shipped import story_checkpoint
from aiasst.tokenizer import Tokenizer
from aiasst.tokenizer.detokenizer import Detokenizer

BYTE_LEVEL = Tokenizer.load(story_checkpoint()).backend


def sentencepiece_like() -> tokenizers.Tokenizer:
    """Words with their leading space as ▁, unknown characters as byte tokens: Llama 2's and Gemma's kind."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁a", "▁the", "b", "c", "▁▁", ".", "é"]
    made = tokenizers.Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return made


SENTENCEPIECE = sentencepiece_like()


def pieces(backend: tokenizers.Tokenizer, ids: list[int]) -> list[str]:
    stream = Detokenizer(backend)
    return [*(stream.feed(i) for i in ids), stream.flush()]


# Ids of single bytes come up often enough to build whole and broken characters.
BYTES = [i for token, i in BYTE_LEVEL.get_vocab().items() if len(token) == 1]


@given(st.lists(st.integers(0, 4095) | st.sampled_from(BYTES), max_size=40))
def test_byte_level_pieces_are_the_whole(ids: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@given(
    st.lists(st.integers(0, SENTENCEPIECE.get_vocab_size() - 1) | st.sampled_from([259, 260, 261, 264]), max_size=40)
)
def test_sentencepiece_pieces_are_the_whole(ids: list[int]) -> None:
    assert "".join(pieces(SENTENCEPIECE, ids)) == SENTENCEPIECE.decode(ids)


@given(st.text(max_size=20))
def test_text_comes_back_and_never_in_halves(text: str) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    shown = ""
    for piece in pieces(BYTE_LEVEL, ids):
        shown += piece
        assert text.startswith(shown)  # half a character would show as one that is not in the text
    assert shown == text


@pytest.mark.parametrize("backend", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_an_emoji_of_several_tokens_shows_when_it_is_complete(backend: tokenizers.Tokenizer) -> None:
    ids = backend.encode("🦊").ids
    assert len(ids) > 1
    made = pieces(backend, ids)
    assert [piece for piece in made if piece.strip()] == [next(p for p in made if "🦊" in p)]


def test_the_space_of_the_first_word_alone_is_dropped() -> None:
    vocabulary = SENTENCEPIECE.get_vocab()
    ids = [vocabulary[token] for token in ("▁the", "▁a", "</s>", "▁the", "b")]
    assert pieces(SENTENCEPIECE, ids) == ["the", " a", "", " the", "b", ""]


def test_half_a_character_at_the_end_shows_as_such() -> None:
    ids = BYTE_LEVEL.encode("🦊").ids[:-1]
    assert "".join(pieces(BYTE_LEVEL, ids)) == "\ufffd"
