"""The tokenizer that comes out of a GGUF file gives the ids that the model was trained with."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from aiasst.convert.sources import gguf_header, gguf_tokenizer
from aiasst.errors import CheckpointError, UnsupportedModelError
from aiasst.tokenizer import Tokenizer
from tests.convert.sources import gguf_writer

TEXT = "In 1984 there were 12345 of them, and they'd say:\n  «naïve» … 3.14159, 42 times."


@pytest.fixture(scope="module")
def trained() -> Backend:
    """A byte-level BPE as SmolLM has it: every digit by itself."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    # Trained with numbers in one piece, so that merges of digits exist and cutting makes a difference.
    whole = Backend(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.train_from_iterator([TEXT] * 5, trainer)
    backend.model = whole.model
    backend.add_special_tokens(["<|end|>"])
    return backend


def write_bpe(path: Path, backend: Backend, pre: str | None) -> Path:
    import json

    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(tokens.index("<|end|>"))
    close(writer)
    return path


def close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def unpack(path: Path, destination: Path) -> Tokenizer:
    destination.mkdir()
    gguf_tokenizer.write(path, gguf_header.read(path), destination)
    return Tokenizer.load(destination)


def test_byte_level_ids_are_those_of_the_original(trained: Backend, tmp_path: Path) -> None:
    ours = unpack(write_bpe(tmp_path / "m.gguf", trained, "smollm"), tmp_path / "out")
    assert ours.encode(TEXT) == trained.encode(TEXT).ids
    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert ours.encode("a<|end|>")[-1] == trained.token_to_id("<|end|>")
    # Cut as GPT-2 cuts, the same vocabulary gives other ids: the way of cutting must be the right one.
    other = unpack(write_bpe(tmp_path / "o.gguf", trained, "gpt-2"), tmp_path / "other")
    assert other.encode(TEXT) != trained.encode(TEXT).ids


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken"])
def test_the_ways_transformers_knows_are_left_to_it(trained: Backend, tmp_path: Path, pre: str) -> None:
    assert pre in GGUF_PRE_TOKENIZER_SPLITS
    ours = unpack(write_bpe(tmp_path / "m.gguf", trained, pre), tmp_path / "out")
    assert ours.decode(ours.encode(TEXT)) == TEXT


@pytest.mark.parametrize("pre", [None, "default", "somebodys-own"])
def test_an_unknown_way_of_cutting_is_refused(trained: Backend, tmp_path: Path, pre: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match=pre or "nothing"):
        unpack(write_bpe(tmp_path / "m.gguf", trained, pre), tmp_path / "out")


def test_no_vocabulary_is_said(tmp_path: Path) -> None:
    close(gguf.GGUFWriter(tmp_path / "m.gguf", "llama"))
    with pytest.raises(CheckpointError, match=r"m\.gguf makes no tokenizer"):
        unpack(tmp_path / "m.gguf", tmp_path / "out")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (False, False)])
def test_what_stands_around_a_text(tmp_path: Path, prefix: bool, bos: bool, eos: bool) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    gguf_writer.add_vocabulary(writer, bos=bos)
    writer.add_add_space_prefix(prefix)
    writer.add_add_eos_token(eos)
    close(writer)
    ours = unpack(tmp_path / "m.gguf", tmp_path / "out")
    word = gguf_writer.TOKENS.index("▁ab" if prefix else "ab")
    assert ours.encode("ab") == [1] * bos + [word] + [2] * eos
    assert ours.decode([word]) == "ab"
