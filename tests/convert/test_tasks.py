"""Tasks have one name each, whatever people call them."""

from __future__ import annotations

import pytest

from aiasst.convert.tasks import canonical_task, default_task
from aiasst.errors import CheckpointError, UsageError


@pytest.mark.parametrize(
    ("word", "task"),
    [
        ("text-generation", "text-generation"),
        ("text-generation-with-past", "text-generation"),
        ("causal-lm", "text-generation"),
        ("causal-lm-with-past", "text-generation"),
        ("Text_Generation", "text-generation"),
        ("chat", "text-generation"),
        ("sentence-similarity", "feature-extraction"),
        ("embedding", "feature-extraction"),
        ("default", "feature-extraction"),
        ("masked-lm", "fill-mask"),
        ("sequence-classification", "text-classification"),
        ("ner", "token-classification"),
        ("cross-encoder", "text-classification"),
        ("text-ranking", "text-classification"),
    ],
)
def test_synonyms(word: str, task: str) -> None:
    assert canonical_task(word) == task


def test_a_canonical_name_stays_itself() -> None:
    from optimum.exporters.tasks import TasksManager

    for task in TasksManager.get_all_tasks():
        assert canonical_task(canonical_task(task)) == canonical_task(task)


def test_an_unknown_task_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        canonical_task("text-generaton")
    assert "text-generaton" in caught.value.message
    assert "text-generation" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        canonical_task("qqqq")
    assert "text-generation" in caught.value.hint


@pytest.mark.parametrize(
    ("class_name", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("Gemma3ForCausalLM", "text-generation"),
        ("BertModel", "feature-extraction"),
        ("XLMRobertaModel", "feature-extraction"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("SomebodysOwnForCausalLM", "text-generation"),
    ],
)
def test_the_default_is_what_the_class_was_made_for(class_name: str, task: str) -> None:
    assert default_task({"architectures": [class_name]}) == task


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": None}, {"architectures": ["Strange"]}])
def test_no_task_is_guessed(config: dict[str, object]) -> None:
    with pytest.raises(CheckpointError) as caught:
        default_task(config)
    assert "--task" in caught.value.hint
