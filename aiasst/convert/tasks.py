"""The names of tasks: optimum's vocabulary with its synonyms, and the default of a checkpoint. Knows no exporter."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from aiasst.errors import CheckpointError, MissingExtraError, UsageError

_WITH_PAST = "-with-past"

# The words people use that optimum's vocabulary lacks; each is the field's own name for one of its tasks.
_OWN_SYNONYMS = {
    "cross-encoder": "text-classification",
    "reranking": "text-classification",
    "text-ranking": "text-classification",
    "chat": "text-generation",
    "conversational": "text-generation",
    "embedding": "feature-extraction",
    "embeddings": "feature-extraction",
    "sentence-embedding": "feature-extraction",
    "masked-language-modeling": "fill-mask",
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
}

# One class may serve several tasks; the first of these that it serves is meant when nobody says.
_PREFERENCE = (
    "text-generation", "feature-extraction", "fill-mask", "text-classification", "token-classification",
    "question-answering", "text2text-generation",
)  # fmt: skip

# For classes that transformers does not have itself: how it ends its own class names.
_SUFFIXES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "Model": "feature-extraction",
}


def canonical_task(word: str) -> str:
    """The canonical name of the task that a user calls `word`; "-with-past" says how to export, not what, and is dropped.

    Raises:
        UsageError: nobody calls a task so; the hint has the nearest names.
        MissingExtraError: optimum is not installed.
    """
    manager = _tasks_manager()
    plain = word.strip().lower().replace("_", "-").removesuffix(_WITH_PAST)
    task: str = manager.map_from_synonym(_OWN_SYNONYMS.get(plain, plain))
    names = set(manager.get_all_tasks())
    if task in names:
        return task
    near = difflib.get_close_matches(plain, sorted(names | _synonyms(manager)), n=3, cutoff=0.5)
    known = near or [name for name in _PREFERENCE if name in names]
    raise UsageError(
        f"there is no task '{word}'", f"did you mean: {', '.join(known)}" if near else f"try: {', '.join(known)}"
    )


def default_task(config: Mapping[str, Any]) -> str:
    """The canonical task that a checkpoint was made for, by the class named in its config.json.

    Raises:
        CheckpointError: config.json names no class, or one that tells nothing.
        MissingExtraError: optimum is not installed.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise CheckpointError(
            "config.json does not say what the model is for (no 'architectures')", "name the task: --task"
        )
    task = _served_by(architectures[0]) or _by_suffix(architectures[0])
    if task is None:
        raise CheckpointError(f"no task is known for a {architectures[0]}", "name the task: --task")
    return canonical_task(task)


def _served_by(class_name: str) -> str | None:
    """The preferred task whose transformers classes include `class_name`; a bare model class is a feature extractor."""
    by_task: Mapping[str, Mapping[str, Any]] = _tasks_manager()._TRANSFORMERS_TASKS_TO_MODEL_MAPPINGS
    serving = [task for task, classes in by_task.items() if _includes(classes, class_name)]
    preferred = [task for task in _PREFERENCE if task in serving]
    return next(iter(preferred + serving), None)


def _includes(classes: Mapping[str, Any], class_name: str) -> bool:
    # A model type has one class, or several of which the configuration chooses.
    return any(class_name == c or (not isinstance(c, str) and class_name in c) for c in classes.values())


def _by_suffix(class_name: str) -> str | None:
    return next((task for suffix, task in _SUFFIXES.items() if class_name.endswith(suffix)), None)


def _synonyms(manager: Any) -> set[str]:
    tasks = manager.get_all_tasks()
    return set(_OWN_SYNONYMS) | {word for task in tasks for word in manager.synonyms_for_task(task)}


def _tasks_manager() -> Any:
    # Imported late: it brings torch and transformers along.
    try:
        from optimum.exporters.tasks import TasksManager
    except ImportError:
        raise MissingExtraError("optimum", "convert") from None
    return TasksManager
