from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.shipped import HELD_OUT_NAME, data_folder, story_checkpoint
from aiasst.errors import ArtifactError
from aiasst.quantize.calibrate.samples import Samples, load_samples
from aiasst.tokenizer import Tokenizer
from aiasst.tokenizer.passages import read_passages
from tests import checkpoints


def test_token_ids_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sample_data.npz"
    np.savez(path, input_ids=np.arange(12, dtype=np.int32).reshape(3, 4), other=np.zeros(1))
    samples = load_samples(path)
    assert (samples.name, samples.ids.shape, samples.ids.dtype) == ("sample_data.npz", (3, 4), np.int64)


def test_a_single_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.ones((2, 5), np.int64))
    assert load_samples(tmp_path / "a.npz").ids.shape == (2, 5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, "float32"),
        ({"x": np.zeros(3, np.int64)}, "[3]"),
        ({"x": np.zeros((0, 3), np.int64)}, "[0, 3]"),
        ({"x": np.full((1, 2), -1)}, "not token ids"),
        ({"x": np.zeros((1, 2), int), "y": np.zeros((1, 2), int)}, "none is input_ids"),
        ({"input_ids": np.array([{"a": 1}], dtype=object)}, "not a readable .npz"),
    ],
)
def test_anything_else_is_refused_in_words(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArtifactError) as caught:
        load_samples(tmp_path / "a.npz")
    assert words in caught.value.message
    assert "np.savez" in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no calibration file"):
        load_samples(tmp_path / "absent.npz")


def test_files_of_other_kinds_and_cut_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "whole.npz", input_ids=np.ones((9, 9), int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    for name in ("text.npz", "cut.npz"):
        with pytest.raises(ArtifactError, match=r"is not an \.npz file"):
            load_samples(tmp_path / name)


# ---------------------------------------------------------------------- texts

WORDS = ("the sea is calm", "a second line of words", "and then the wind rose", "some thing in the rain", "an end")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts <s> before every text and knows </s>."""
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoints.write_tokenizer(folder)
    return folder


def _write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def _decoded(folder: Path, samples: Samples) -> list[str]:
    tokenizer = Tokenizer.load(folder)
    return [tokenizer.backend.decode(row.tolist(), skip_special_tokens=False) for row in samples.ids]


def test_passages_are_joined_and_cut(tmp_path: Path, plain: Path) -> None:
    path = _write(tmp_path / "a.jsonl", [{"text": words} for words in WORDS])
    samples = load_samples(path, plain, sequences=3, length=20)
    assert samples.ids.shape == (3, 20)
    assert (samples.ids[:, 0] == checkpoints.BOS).all()
    text = "".join(row.removeprefix("<s>") for row in _decoded(plain, samples))
    passages = [words.removeprefix("<s>") for words in text.split("</s>")]
    assert len(passages) > 1
    assert set(passages[:-1]) <= set(WORDS)
    assert any(words.startswith(passages[-1]) for words in WORDS)


def test_a_seed_is_a_choice_and_the_hash_knows_it(tmp_path: Path, plain: Path) -> None:
    path = _write(tmp_path / "a.jsonl", [{"text": f"{words} {n}"} for n in range(9) for words in WORDS])
    one, again, other = (load_samples(path, plain, sequences=4, length=24, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.ids, again.ids) and one.sha256 == again.sha256 and len(one.sha256) == 64
    assert not np.array_equal(one.ids, other.ids) and one.sha256 != other.sha256
    assert (one.seed, other.seed, one.name) == (0, 1, "a.jsonl")


def test_an_encoder_s_sequences_end_as_its_texts_do(tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path, encoder=True)
    path = _write(tmp_path / "a.jsonl", [{"text": words} for words in WORDS])
    samples = load_samples(path, tmp_path, sequences=2, length=16)
    assert (samples.ids[:, 0] == checkpoints.BOS).all() and (samples.ids[:, -1] == checkpoints.EOS).all()


def test_conversations_are_rendered_where_there_is_a_template(tmp_path: Path, plain: Path) -> None:
    row = {"messages": [{"role": "user", "content": "is it calm"}, {"role": "assistant", "content": "it is"}]}
    path = _write(tmp_path / "a.jsonl", [row] * 4)
    assert "is it calm\n\nit is" in _decoded(plain, load_samples(path, plain, sequences=1, length=40))[0]
    checkpoints.write_tokenizer(tmp_path, chat_template=True)
    rendered = _decoded(tmp_path, load_samples(path, tmp_path, sequences=1, length=60))[0]
    assert "<user>is it calm\n<assistant>it is\n</s>" in rendered


def test_the_context_limits_the_length(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" ".join(WORDS * 9))
    assert load_samples(path, plain, length=64, context_length=30).ids.shape[1] == 30


def test_windows_of_a_long_text_do_not_overlap_and_come_from_everywhere(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" ".join(f"word {n:06}" for n in range(20_000)), encoding="utf-8")
    samples = load_samples(path, plain, sequences=8, length=64)
    assert samples.ids.shape == (8, 64)
    found = [[int(n) for n in re.findall(r"\d{6}", row)] for row in _decoded(plain, samples)]
    assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for numbers in found)
    flat = [n for numbers in found for n in numbers]
    assert flat == sorted(set(flat))
    assert all(part * 2500 <= numbers[0] < (part + 1) * 2500 for part, numbers in enumerate(found))
    few = load_samples(path, plain, sequences=8, length=64, seed=1)
    assert not np.array_equal(few.ids, samples.ids)


def test_a_long_text_without_spaces_is_cut_between_characters(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("海はとても静かだ" * 4000, encoding="utf-8")
    assert load_samples(path, plain, sequences=2, length=2).ids.shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "too short"),
        ("a.txt", b"too short", "too short"),
        ("a.txt", "fünf".encode("latin-1") * 90, "not UTF-8 text"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"text": "  "}\n', "is empty"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": \n', "line 3 is not valid JSON at column 10"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]', "line 2 has neither a text nor messages"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1 has neither"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "caf\xe9"}', "not UTF-8 text"),
        ("a.md", b"some words", "is no .jsonl, .txt or .npz"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_in_words(
    tmp_path: Path, plain: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load_samples(tmp_path / name, plain, length=64)
    assert words in caught.value.message
    assert caught.value.hint


def test_ids_the_model_does_not_have_are_refused(tmp_path: Path, plain: Path) -> None:
    np.savez(tmp_path / "a.npz", np.array([[3, 99]]))
    assert load_samples(tmp_path / "a.npz", vocab_size=100).ids.max() == 99
    with pytest.raises(ArtifactError, match="holds the token id 99, and the model has 99 tokens"):
        load_samples(tmp_path / "a.npz", vocab_size=99)
    with pytest.raises(ArtifactError, match="sequences of 2 tokens, and the model takes 1"):
        load_samples(tmp_path / "a.npz", context_length=1)


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    for path in (tmp_path / "a.txt", None):
        with pytest.raises(ArtifactError, match=r"the model has no tokenizer\.json") as caught:
            load_samples(path, tmp_path)
        assert "np.savez" in caught.value.hint


def test_our_own_texts_leave_the_held_out_one_out() -> None:
    folder = story_checkpoint()
    samples = load_samples(None, folder)
    assert (samples.name, samples.ids.shape) == ("calibration", (64, 512))
    tokenizer = Tokenizer.load(folder)
    seen = tokenizer.decode(samples.ids.reshape(-1).tolist())
    passages = read_passages(data_folder("calibration") / HELD_OUT_NAME, hint="")
    # As the tokenizer gives it back: it may not know every character.
    unseen = [tokenizer.decode(tokenizer.encode(passage.text)) for passage in passages]
    lines = [line for text in unseen for line in text.splitlines() if len(line) > 60]
    assert lines and not any(line in seen for line in lines)
