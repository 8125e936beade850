"""Vectors of texts: pooled as a checkpoint's files say, compared by their cosine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.errors import ArtifactError
from aiasst.evaluate.similarity import POOLINGS, SentenceRules, TextEncoder, cosines, read_rules
from aiasst.tokenizer import Tokenizer
from tests import checkpoints

HIDDEN = np.array([[1, 2], [3, -4], [5, 0]], np.float32)


def declare(folder: Path, pooling: object = None, modules: list[str] | None = None, transformer: object = None) -> Path:
    (folder / "1_Pooling").mkdir()
    rows = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{m}"} for i, m in enumerate(modules or [])]
    for name, content in (
        ("1_Pooling/config.json", pooling),
        ("modules.json", rows if modules is not None else None),
        ("sentence_bert_config.json", transformer),
    ):
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mean", [3, -2 / 3]),
        ("cls", [1, 2]),
        ("max", [5, 2]),
        ("lasttoken", [5, 0]),
        ("mean_sqrt_len_tokens", [9 / 3**0.5, -2 / 3**0.5]),
        ("weightedmean", [(1 + 6 + 15) / 6, (2 - 8) / 6]),
    ],
)
def test_poolings(name: str, wanted: list[float]) -> None:
    assert POOLINGS[name](HIDDEN) == pytest.approx(wanted)


def test_rules_without_files_are_the_mean(tmp_path: Path) -> None:
    assert read_rules(tmp_path) == SentenceRules(("mean",), normalize=False, longest=None)


def test_rules_as_the_files_declare(tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    transformer = {"max_seq_length": 128, "do_lower_case": True}
    folder = declare(tmp_path, pooling, ["Transformer", "Pooling", "Normalize"], transformer)
    assert read_rules(folder) == SentenceRules(("cls", "max"), normalize=True, longest=128, lower_case=True)


def test_rules_of_newer_files(tmp_path: Path) -> None:
    folder = declare(tmp_path, {"pooling_mode": "lasttoken"}, ["Transformer", "Pooling"])
    assert read_rules(folder) == SentenceRules(("lasttoken",))


def test_what_is_not_computed_here_is_named(tmp_path: Path) -> None:
    rules = read_rules(declare(tmp_path, {"pooling_mode": "attention"}, ["Transformer", "Pooling", "Dense"]))
    assert rules.modes == ("mean",)
    assert rules.beyond == "a Dense module and the pooling 'attention'"


@pytest.mark.parametrize(("name", "content"), [("modules.json", "{}"), ("1_Pooling/config.json", "[]")])
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = declare(tmp_path)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds no"):
        read_rules(folder)


def test_cosines() -> None:
    zero, up, right = np.zeros(2, np.float32), np.array([0, 2], np.float32), np.array([3, 0], np.float32)
    assert cosines([up, up, up, zero, up], [up, right, -up, zero, zero]).tolist() == [1, 0, -1, 1, 0]


class Echo:
    """A session whose hidden states are the ids themselves."""

    input_names = ("input_ids", "attention_mask")
    output_names = ("pooler_output", "last_hidden_state")
    runs = 0

    def run(self, feeds: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        assert (sorted(feeds), outputs) == (["attention_mask", "input_ids"], ["last_hidden_state"])
        self.runs += 1
        return [np.stack([feeds["input_ids"], feeds["attention_mask"]], -1).astype(np.float16)]


def test_a_long_text_is_cut_and_keeps_its_end(tmp_path: Path) -> None:
    checkpoints.write_tokenizer(tmp_path, encoder=True)
    session = Echo()
    rules = SentenceRules(("cls", "lasttoken"), normalize=True, longest=6)
    encoder = TextEncoder(session, Tokenizer.load(tmp_path), rules, context_length=100)  # type: ignore[arg-type]
    long, short = encoder.encode("a long sentence"), encoder.encode("a")
    assert (len(long), len(short)) == (6, 3)
    assert long[[0, -1]].tolist() == [checkpoints.BOS, checkpoints.EOS]
    first, second, third = encoder.vectors([long, short, long])
    assert first is third
    assert session.runs == 2
    assert first == pytest.approx(np.array([1, 1, 2, 1]) / 7**0.5, rel=1e-6)
    assert second.dtype == np.float32


def test_minilm_finds_the_sentence_of_the_same_meaning(minilm: tuple[ModelFolder, ModelFolder]) -> None:
    encoder = TextEncoder.open(minilm[0])
    assert encoder.rules == SentenceRules(("mean",), normalize=True, longest=256)
    texts = ("a cat sleeps on the sofa", "the kitten is napping on the couch", "interest rates rose last week")
    cat, kitten, rates = encoder.vectors([encoder.encode(text) for text in texts])
    assert np.linalg.norm(cat) == pytest.approx(1)
    assert cat @ kitten > 0.5 > cat @ rates
