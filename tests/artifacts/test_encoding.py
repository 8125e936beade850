"""What the files of a checkpoint say of pooling, prompts and labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiasst.artifacts.encoding import Encoding, Projection, embeds, read_encoding
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
    assert found == Encoding(pooling=("cls", "max"), normalize=True, max_tokens=128, lower_case=True)


def test_newer_files_and_the_limit_of_the_tokenizer(tmp_path: Path) -> None:
    folder = declare(
        tmp_path, {"pooling_mode": "lasttoken"}, ["Transformer", "Pooling"], tokenizer_config={"model_max_length": 77}
    )
    assert read_encoding(folder) == Encoding(pooling=("lasttoken",), max_tokens=77)


def test_what_is_not_computed_here_is_named(tmp_path: Path) -> None:
    found = read_encoding(declare(tmp_path, {"pooling_mode": "attention"}, ["Transformer", "Pooling", "LSTM"]))
    assert found.pooling == ("mean",)
    assert found.beyond == "a LSTM module and the pooling 'attention'"


def with_modules(folder: Path, *modules: tuple[str, str, dict[str, object]]) -> Path:
    rows = [{"path": place, "type": f"sentence_transformers.models.{kind}"} for kind, place, _ in modules]
    (folder / "modules.json").write_text(json.dumps(rows), encoding="utf-8")
    for _, place, config in modules:
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


DENSE: dict[str, object] = {"in_features": 8, "out_features": 3, "bias": False}


def test_projections_in_the_order_of_the_modules(tmp_path: Path) -> None:
    folder = with_modules(
        tmp_path,
        ("Pooling", "1_Pooling", {"pooling_mode": "cls"}),
        ("Normalize", "2_Normalize", {}),
        ("Dense", "3_Dense", DENSE | {"activation_function": "torch.nn.modules.activation.GELU"}),
        ("Dropout", "4_Dropout", {"dropout": 0.1}),
        ("Dense", "5_Dense", {"in_features": 3, "out_features": 3, "use_residual": True}),
    )
    found = read_encoding(folder)
    assert found.projections == (
        Projection(folder="3_Dense", inputs=8, outputs=3, bias=False, activation="gelu", unit_input=True),
        Projection(folder="5_Dense", inputs=3, outputs=3, residual=True, activation="tanh"),
    )
    assert (found.pooling, found.normalize, found.beyond) == (("cls",), False, "")
    assert embeds(folder)
    assert Encoding.parse(json.loads(found.to_json()), "it") == found
    assert "projections" not in Encoding().to_json()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"activation_function": "os.system"}, "a Dense module with the activation 'system'"),
        ({"activation_function": "theirs.Tanh"}, "a Dense module with the activation 'Tanh'"),
        ({"activation_function": "torch.nn.modules.activation.Hardswish"}, "with the activation 'Hardswish'"),
        ({"activation_function": 7}, "with the activation '7'"),
        ({"module_input_name": "token_embeddings"}, "a Dense module on something else than the vector of a text"),
    ],
)
def test_a_projection_of_somebody_elses_is_named_and_nothing_is_imported(
    config: dict[str, object], said: str, tmp_path: Path
) -> None:
    found = read_encoding(with_modules(tmp_path, ("Dense", "2_Dense", DENSE | config)))
    assert said in found.beyond
    assert found.projections == ()


@pytest.mark.parametrize("config", [{}, DENSE | {"out_features": 0}, DENSE | {"in_features": "many"}])
def test_a_projection_without_sizes_is_refused(config: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"2_Dense/config\.json"):
        read_encoding(with_modules(tmp_path, ("Dense", "2_Dense", config)))


@pytest.mark.parametrize("place", ["../other", "/etc", "a/b", "..", 3])
def test_modules_stay_in_their_folder(place: object, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": place, "type": "m.Dense"}]), encoding="utf-8")
    with pytest.raises(ArtifactError, match="no folder beside it"):
        read_encoding(tmp_path)


def test_prompts_go_before_the_text(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "Find: ", "document": ""}, "default_prompt_name": "query"}
    found = read_encoding(declare(tmp_path, None, ["Transformer"], config_sentence_transformers=prompts))
    assert (found.prompts, found.default_prompt) == ({"query": "Find: "}, "query")
    assert found.prompted("  A cat \n") == "Find:   A cat \n"
    assert found.model_copy(update={"strip": True}).prompted("  A cat \n") == "Find:   A cat"
    assert (found.prompt_text(), found.prompt_text("query"), found.prompt_text("document")) == ("Find: ", "Find: ", "")
    assert found.pools_prompt
    assert Encoding(lower_case=True).prompted(" A cat ") == " a cat "


def test_prompts_that_are_read_and_not_pooled(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "Find: "}}
    folder = declare(tmp_path, {"include_prompt": False}, ["Pooling"], config_sentence_transformers=prompts)
    found = read_encoding(folder)
    assert (found.pools_prompt, found.beyond) == (False, "")


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


def test_a_cross_encoder_may_name_its_activation_beside(tmp_path: Path) -> None:
    beside = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    config = {"id2label": {"0": "x"}, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}
    folder = declare(tmp_path, None, ["Transformer"], config=config, config_sentence_transformers=beside)
    assert read_encoding(folder).activation == "identity"
    assert not embeds(folder)


@pytest.mark.parametrize("named", ["theirs.Strange", "theirs.Sigmoid"])
def test_an_activation_of_somebody_elses(named: str, tmp_path: Path) -> None:
    found = read_encoding(declare(tmp_path, config={"sentence_transformers": {"activation_fn": named}}))
    assert found.beyond == f"the activation '{named.partition('.')[2]}'"


@pytest.mark.parametrize(("name", "content"), [("modules.json", "{}"), ("1_Pooling/config.json", "[]")])
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = declare(tmp_path)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="holds no"):
        read_encoding(folder)


def test_labels_with_gaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="gaps"):
        read_encoding(declare(tmp_path, config={"id2label": {"0": "a", "2": "b"}}))
