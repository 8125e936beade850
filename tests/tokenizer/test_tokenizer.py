"""The tokenizer on the story checkpoint's files and on files written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiasst.artifacts.shipped import story_checkpoint
from aiasst.errors import ArtifactError
from aiasst.tokenizer import Message, Tokenizer

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def folder(path: Path, **config: object) -> Path:
    """The story tokenizer with this tokenizer_config.json."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_bytes((story_checkpoint() / "tokenizer.json").read_bytes())
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def with_bos(path: Path) -> Path:
    """The same, with a post-processor that puts <|endoftext|> before a text, as Llama's does."""
    data = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return path


def test_text_goes_to_ids_and_back() -> None:
    tokenizer = Tokenizer.load(story_checkpoint())
    text = "Once upon a time, in a café ☂."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (0,)
    assert tokenizer.bos_id == 0
    assert not tokenizer.has_chat_template


def test_special_tokens_are_strings_or_objects(tmp_path: Path) -> None:
    as_object = {"content": "<|endoftext|>", "lstrip": False, "special": True, "__type": "AddedToken"}
    tokenizer = Tokenizer.load(folder(tmp_path, bos_token=as_object, eos_token="<|assistant|>", pad_token=None))
    assert tokenizer.special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|assistant|>"}
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (2,))


def test_ends_are_also_those_of_the_generation_config(tmp_path: Path) -> None:
    path = folder(tmp_path, eos_token="<|endoftext|>")
    (path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}', encoding="utf-8")
    assert Tokenizer.load(path).eos_ids == (0, 2)


def test_a_chat_has_one_begin_token_where_a_prompt_gets_one_too(tmp_path: Path) -> None:
    path = with_bos(folder(tmp_path, bos_token="<|endoftext|>", eos_token="<|endoftext|>", chat_template=CHATML))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode("hello")[0] == 0
    ids = tokenizer.encode_chat([Message("user", "hello")])
    assert ids[:2] == [0, 1]  # begin, <|user|>
    assert ids[-2:] == [0, 2]  # end of the turn, <|assistant|>
    assert tokenizer.decode(ids) == "hello"


def test_settings_of_a_training_run_do_not_cut_prompts(tmp_path: Path) -> None:
    path = folder(tmp_path)
    data = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert len(Tokenizer.load(path).encode("one two three four five six seven")) > 4


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is not a tokenizer that can be read"):
        Tokenizer.load(tmp_path)
    path = folder(tmp_path)
    (path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match="no JSON object"):
        Tokenizer.load(path)


def test_messages_need_a_template() -> None:
    with pytest.raises(ArtifactError, match="no chat template"):
        Tokenizer.load(story_checkpoint()).encode_chat([Message("user", "hello")])
