"""What the files of a checkpoint say of pooling, prompts and labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiasst.artifacts.encoding import Encoding, read_encoding
from aiasst.errors import ArtifactError


def declare(
    folder: Path,
    pooling: object = None,
    modules: list[str] | None = None,
    transformer: object = None,
    **files: object,
) -> Path:
    (folder / "1_Pooling").mkdir()
    rows = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{m}"} for i, m in enumerate(modules or [])]
    for name, content in (
        ("1_Pooling/config", pooling),
        ("modules", rows if modules is not None else None),
        ("sentence_bert_config", transformer),
        *files.items(),
    ):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_without_files_it_is_the_mean(tmp_path: Path) -> None:
    assert read_encoding(tmp_path) == Encoding(pooling=("mean",), normalize=False, max_tokens=None)


def test_as_the_files_declare(tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    transformer = {"max_seq_length": 128, "do_lower_case": True}
    found = read_encoding(declare(tmp_path, pooling, ["Transformer", "Pooling", "Normalize"], transformer))
    assert found == Encoding(pooling=("cls", "max"), normalize=True, max_tokens=128, lower_case=True, strip=True)


def test_newer_files_and_the_limit_of_the_tokenizer(tmp_path: Path) -> None:
    folder = declare(
        tmp_path, {"pooling_mode": "lasttoken"}, ["Transformer", "Pooling"], tokenizer_config={"model_max_length": 77}
    )
    assert read_encoding(folder) == Encoding(pooling=("lasttoken",), max_tokens=77, strip=True)


def test_what_is_not_computed_here_is_named(tmp_path: Path) -> None:
    found = read_encoding(declare(tmp_path, {"pooling_mode": "attention"}, ["Transformer", "Pooling", "Dense"]))
    assert found.pooling == ("mean",)
    assert found.beyond == "a Dense module and the pooling 'attention'"


def test_prompts_go_before_the_text(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "Find: ", "document": ""}, "default_prompt_name": "query"}
    found = read_encoding(declare(tmp_path, None, ["Transformer"], config_sentence_transformers=prompts))
    assert (found.prompts, found.default_prompt) == ({"query": "Find: "}, "query")
    assert found.prompted("  A cat \n") == "Find:   A cat"
    assert Encoding(lower_case=True).prompted(" A cat ") == " a cat "


@pytest.mark.parametrize(
    ("config", "activation", "labels"),
    [
        ({"id2label": {"1": "good", "0": "bad"}}, "softmax", ("bad", "good")),
        ({"id2label": {"0": "LABEL_0"}}, "sigmoid", ("LABEL_0",)),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, "identity", ("LABEL_0",)),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}, "sigmoid", ("a", "b")),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity", ()),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid", ()),
    ],
)
def test_classifiers(tmp_path: Path, config: object, activation: str, labels: tuple[str, ...]) -> None:
    found = read_encoding(declare(tmp_path, config=config))
    assert (found.activation, found.labels, found.beyond) == (activation, labels, "")


def test_an_activation_of_somebody_elses(tmp_path: Path) -> None:
    found = read_encoding(declare(tmp_path, config={"sentence_transformers": {"activation_fn": "theirs.Strange"}}))
    assert found.beyond == "the activation 'Strange'"


@pytest.mark.parametrize(("name", "content"), [("modules.json", "{}"), ("1_Pooling/config.json", "[]")])
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = declare(tmp_path)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds no"):
        read_encoding(folder)


def test_labels_with_gaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="gaps"):
        read_encoding(declare(tmp_path, config={"id2label": {"0": "a", "2": "b"}}))
