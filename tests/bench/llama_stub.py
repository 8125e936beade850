"""A `llama_cpp` of our own, for the worker: refuses batches that llama.cpp would refuse, and computes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "STUB_ABSENT" in os.environ:
    raise ModuleNotFoundError("No module named 'llama_cpp'", name="llama_cpp")

__version__ = "9.9.9"
sys.stdout.write("the library talks\n")
LAYERS, HIDDEN, VOCABULARY = (int(number) for number in os.environ.get("STUB_SHAPE", "2,32,61").split(","))


def llama_backend_init() -> None: ...


def llama_model_default_params() -> None: ...


def llama_model_load_from_file(path: bytes, _: None) -> object:
    return object() if Path(os.fsdecode(path)).read_bytes().startswith(b"GGUF") else None


def llama_model_get_vocab(model: object) -> object:
    return model


def llama_vocab_n_tokens(_: object) -> int:
    return VOCABULARY


def llama_model_desc(_: object, buffer: Any, size: int) -> None:
    buffer.value = b"stub 1B Q4_0"


def llama_model_n_layer(_: object) -> int:
    return LAYERS


def llama_model_n_embd(_: object) -> int:
    return HIDDEN


def llama_context_default_params() -> SimpleNamespace:
    return SimpleNamespace()


def llama_init_from_model(_: object, settings: SimpleNamespace) -> SimpleNamespace:
    assert settings.n_threads == settings.n_threads_batch == 3
    return SimpleNamespace(lengths=[0] * settings.n_seq_max, settings=settings)


def llama_get_memory(context: SimpleNamespace) -> SimpleNamespace:
    return context


def llama_memory_clear(context: SimpleNamespace, _: bool) -> None:
    context.lengths = [0] * len(context.lengths)


def llama_batch_init(tokens: int, _: int, sequences: int) -> SimpleNamespace:
    lists = {name: [None] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
    return SimpleNamespace(n_tokens=0, seq_id=[[None] * sequences for _ in range(tokens)], **lists)


def llama_decode(context: SimpleNamespace, batch: SimpleNamespace) -> int:
    assert batch.n_tokens <= context.settings.n_batch
    for index in range(batch.n_tokens):
        (sequence,) = batch.seq_id[index]
        assert 0 <= batch.token[index] < VOCABULARY
        assert batch.pos[index] == context.lengths[sequence]
        context.lengths[sequence] += 1
    assert sum(context.lengths) <= context.settings.n_ctx
    assert batch.logits[batch.n_tokens - 1]
    if "STUB_DIES" in os.environ:
        sys.stderr.write("out of everything\n")
        sys.stderr.flush()
        os._exit(3)
    return 0


def llama_synchronize(_: SimpleNamespace) -> None: ...


def llama_batch_free(_: SimpleNamespace) -> None: ...
