"""The original model in torch: what it answers to given ids. Knows no graph and no comparison."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aiasst.errors import CheckpointError

if TYPE_CHECKING:
    from aiasst.convert.sources import Checkpoint

AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
}
"""Task → the transformers class that computes it."""


def decoder_logits(checkpoint: Checkpoint, ids: npt.NDArray[np.int64], keep: int) -> npt.NDArray[np.float32]:
    """Logits of the last `keep` positions of one sequence, float32 arithmetic, no cache, no fused attention.

    Args:
        checkpoint: The original.
        ids: int64 [tokens].
        keep: How many positions, counted from the end.

    Returns:
        float32 [keep, vocabulary].

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    import torch

    model = _load(checkpoint, "text-generation")
    with torch.inference_mode(), _given_back():
        answer = model(input_ids=torch.from_numpy(ids[None]), use_cache=False, logits_to_keep=keep)
        logits: npt.NDArray[np.float32] = answer.logits[0].float().numpy().copy()
        del model, answer
    return logits


def encoder_output(
    checkpoint: Checkpoint,
    task: str,
    ids: npt.NDArray[np.int64],
    mask: npt.NDArray[np.int64],
    types: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Last hidden state or logits of a padded batch.

    Args:
        checkpoint: The original.
        task: Which head it has; see AUTO_CLASSES.
        ids: int64 [batch, sequence].
        mask: int64 [batch, sequence], 1 for tokens, 0 for padding.
        types: int64 [batch, sequence], which of two texts a token is of; None: the model is not told.

    Returns:
        float32 [batch, sequence, hidden], [batch, sequence, labels] or [batch, labels].

    Raises:
        CheckpointError: transformers cannot load the checkpoint.
    """
    import torch

    model = _load(checkpoint, task)
    with torch.inference_mode(), _given_back():
        feeds = {"input_ids": ids, "attention_mask": mask} | ({} if types is None else {"token_type_ids": types})
        answer = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        output = answer.logits if "logits" in answer else answer.last_hidden_state
        values: npt.NDArray[np.float32] = output.float().numpy().copy()
        del model, answer, output
    return values


@contextlib.contextmanager
def _given_back() -> Iterator[None]:
    """Free a model that was deleted in the block: its modules refer to one another, and its copy needs the room next."""
    try:
        yield
    finally:
        gc.collect()


def _load(checkpoint: Checkpoint, task: str) -> Any:
    import torch
    import transformers
    from transformers.utils import logging

    kind = getattr(transformers, AUTO_CLASSES[task])
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(
            str(checkpoint.path),
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=checkpoint.trust_remote_code,
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers cannot load the checkpoint to compare with: {error}", "download the checkpoint again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
