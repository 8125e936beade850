"""The tokenizer of a GGUF file as tokenizer.json and its configuration. Knows nothing of weights.

transformers builds it from the vocabulary. What it does not look at is done here: how an unusual byte-level vocabulary cuts text
before merging, whether a space is put before the text, and what stands around it. An unknown way of cutting is refused: other
tokens than those of training make a good model worse without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiasst.convert.sources.gguf_header import GgufHeader
from aiasst.errors import CheckpointError, UnsupportedModelError

_INSTEAD = "use the Hugging Face form of this model"

# What llama.cpp (src/llama-vocab.cpp) cuts with the regular expression of GPT-2, which is the default of transformers.
_LIKE_GPT2 = ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de")

# The same after every digit was set apart.
_DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")


def write(file: Path, header: GgufHeader, destination: Path) -> None:
    """Write the tokenizer of the GGUF `file` into the folder `destination`.

    Raises:
        CheckpointError: the vocabulary is damaged or missing.
        UnsupportedModelError: it cuts text in a way that is not known here.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    try:
        architecture, vocabulary, config = get_gguf_tokenizer(str(file))
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the vocabulary in {file.name} makes no tokenizer: {error}", _INSTEAD) from error
    _cut_as_trained(backend, vocabulary, file)
    if vocabulary.get("tokenizer_type") == "llama" and vocabulary.get("add_prefix_space") is False:
        _without_space_before(backend)
    bos, eos = (config.get(name) if config.pop(f"add_{name}", False) else None for name in ("bos_token", "eos_token"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{key: value for key, value in config.items() if value is not None}
    )
    tokenizer.backend_tokenizer.post_processor = _surround(tokenizer, bos, eos)
    tokenizer.save_pretrained(destination)


def _cut_as_trained(backend: Any, vocabulary: dict[str, Any], file: Path) -> None:
    """See that a byte-level vocabulary cuts text into words as it did in training."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    way = vocabulary.get("pre_tokenizer_type")
    if vocabulary.get("tokenizer_type") != "gpt2" or way in GGUF_PRE_TOKENIZER_SPLITS or way in _LIKE_GPT2:
        return
    if way not in _DIGITS_THEN_GPT2:
        named = f"'{way}'" if way else "nothing"
        raise UnsupportedModelError(
            f"{file.name} says {named} of how its vocabulary cuts text into words, which is not known here", _INSTEAD
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _without_space_before(backend: Any) -> None:
    """A sentencepiece vocabulary whose texts begin as they are (add_space_prefix = false)."""
    from tokenizers import decoders, pre_tokenizers

    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _surround(tokenizer: Any, bos: str | None, eos: str | None) -> Any:
    """The processor that puts `bos` before a text and `eos` after it; None where there is nothing to put."""
    from tokenizers.processors import TemplateProcessing

    if bos is None and eos is None:
        return None
    before, after = ([bos] if bos else []), ([eos] if eos else [])
    second = [f"{token}:1" for token in before] + ["$B:1"] + [f"{token}:1" for token in after]
    return TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *second],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(before + after)],
    )
