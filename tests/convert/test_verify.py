"""The comparison with the original: what it covers, and that it catches what it is there to catch."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.convert import convert, verify
from aiasst.convert.architecture import Architecture
from aiasst.convert.exporters import mobius
from aiasst.convert.finish import tensors, windows
from aiasst.errors import ExportError, VerificationError
from tests import checkpoints
from tests.convert.conftest import Converter


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_the_steps_cover_every_token_once_and_begin_where_the_comparison_begins(tokens: int, keep: int) -> None:
    keep = min(keep, tokens)
    steps = verify._steps(tokens, keep)
    assert steps[0][0] == 0
    assert steps[-1][1] == tokens
    assert all(one[1] == two[0] for one, two in itertools.pairwise(steps))
    assert tokens - keep in {start for start, _ in steps}
    assert len(steps) >= min(tokens, 3)


@given(st.integers(8, 300), st.integers(8, 600))
def test_the_batch_is_ragged_and_holds_the_ids(longest: int, count: int) -> None:
    ids, mask = verify.ragged_batch(np.arange(1, count + 1), longest, 0)
    assert ids.shape == mask.shape == (8, longest)
    assert mask.sum(1).max() == longest
    assert len(set(mask.sum(1).tolist())) == 8
    assert (ids[mask == 1] > 0).all()
    assert (ids[mask == 0] == 0).all()


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_a_lost_sliding_window_is_caught(
    name: str, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everywhere(graph: Any, layer_windows: Any) -> bool:
        return apply(graph, [None] * len(layer_windows))

    apply = windows.apply
    monkeypatch.setattr(windows, "apply", everywhere)
    with pytest.raises(VerificationError) as caught:
        convert(checkpoint(name), tmp_path / "out", exporter="mobius")
    assert "nothing was written" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_columns_in_the_wrong_order_are_caught(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tensors.concatenated
    monkeypatch.setattr(tensors, "concatenated", lambda parts, axis: right(list(reversed(parts)), axis))
    with pytest.raises(VerificationError):
        convert(checkpoint("llama"), tmp_path / "out", exporter="mobius")
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_caught() -> None:
    sample = verify.Sample(np.arange(4), "ids")
    good = np.ones((4, 3), np.float32)
    with pytest.raises(VerificationError):
        verify._judge(sample, 4, good, np.full_like(good, np.nan), 0.0, 1e-4)
    assert verify._judge(sample, 4, good, good, 1.0, 1e-4).max_abs_diff == 0


def test_without_a_tokenizer_ids_are_random_and_the_same_every_time(tmp_path: Path) -> None:
    folder = checkpoints.build("llama_tied", tmp_path / "bare", tokenizer=False)
    one, two = (verify.sample_ids(folder, 105, 50) for _ in range(2))
    np.testing.assert_array_equal(one.ids, two.ids)
    assert "random" in one.name
    proof = convert(folder, tmp_path / "out").manifest.verification
    assert proof is not None
    assert "random" in proof.text


def test_the_length_reaches_beyond_the_window_where_it_can(converted: Converter) -> None:
    base = Architecture("x", 2, 8, 9, 1, 1, 4096, (None, None), False, converted("bert").manifest.tokens)
    assert verify.comparison_length(base) == verify.SHORTEST
    assert verify.comparison_length(replace(base, layer_windows=(None, 512))) == 512 + verify.BEYOND_WINDOW
    assert verify.comparison_length(replace(base, layer_windows=(4000,))) == verify.LONGEST
    assert verify.comparison_length(replace(base, context_length=64)) == 64


def test_an_encoder_is_compared_beyond_what_it_tells_apart(converted: Converter) -> None:
    base = Architecture("x", 2, 8, 9, 1, 1, 512, (None, None), False, converted("bert").manifest.tokens)
    assert verify.encoder_length(base) == verify.ENCODER_ROW
    assert verify.encoder_length(replace(base, layer_windows=(None, 64))) == 64 + verify.ENCODER_ROW
    far = replace(base, relative_positions=True)
    assert verify.encoder_length(far) == verify.FINE_DISTANCES + verify.ENCODER_ROW
    assert verify.encoder_length(replace(far, context_length=40)) == 40


def test_few_positions_are_compared_where_the_vocabulary_is_large(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MOST_LOGITS", 105 * 7)
    proof = convert(checkpoint("gemma3"), tmp_path / "out").manifest.verification
    assert proof is not None
    assert proof.max_abs_diff < 1e-4


def test_the_next_exporter_is_tried_where_one_fails(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ExportError("no luck")

    monkeypatch.setattr(mobius, "export", fails)
    notes: list[str] = []
    folder = convert(checkpoint("llama_tied"), tmp_path / "out", progress=lambda event: notes.append(event.note))
    assert folder.manifest.exporter == "transformers"
    assert "mobius failed: no luck" in notes
    with pytest.raises(ExportError, match="no luck"):
        convert(checkpoint("llama_tied"), tmp_path / "other", exporter="mobius")


def test_weights_in_half_precision_and_several_ends_of_text(tmp_path: Path) -> None:
    folder = checkpoints.build("qwen2", tmp_path / "half", dtype="bfloat16")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2], "bos_token_id": 1}))
    written = convert(folder, tmp_path / "out")
    assert written.manifest.tokens.eos == (4, 2)
    assert written.manifest.verification is not None
    assert written.manifest.verification.max_abs_diff < 1e-4
    assert {row.format for row in written.manifest.weights.values()} == {"fp32"}
