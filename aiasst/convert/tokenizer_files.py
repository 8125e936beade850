"""Gives a model folder its tokenizer.json where the checkpoint has an older form of tokenizer. Knows no model."""

from __future__ import annotations

from pathlib import Path

from aiasst.progress import Progress, ProgressFn, silent

TOKENIZER_NAME = "tokenizer.json"
OLDER_FORMS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


def ensure_tokenizer(checkpoint: Path, folder: Path, progress: ProgressFn = silent) -> bool:
    """Write `folder`/tokenizer.json from the older files of `checkpoint` where it has none; whether the folder has one now.

    transformers does the translation, with the checkpoint's own tokenizer class and never with code of the checkpoint. A
    form that it cannot read leaves the folder without: the graph is right all the same, and text can be given as ids.
    """
    if (folder / TOKENIZER_NAME).is_file():
        return True
    if not any((checkpoint / name).is_file() for name in OLDER_FORMS):
        return False
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
        tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_NAME))
    except (ValueError, OSError, ImportError, AttributeError, KeyError, TypeError) as error:
        # Each class of tokenizer fails in its own way on files that it does not know; none of them spoils the model.
        progress(Progress("tokenizer", 0, 1, f"could not be translated: {error}".splitlines()[0]))
        return False
    progress(Progress("tokenizer", 1, 1, "translated to tokenizer.json"))
    return True
