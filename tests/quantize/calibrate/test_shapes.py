"""A model in numbers: what is run, what is rounded, and what stands in memory while a batch goes through a layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiasst.artifacts.model_folder import ModelFolder
from aiasst.quantize.calibrate.layers import cut_layers
from aiasst.quantize.calibrate.shapes import ModelShape, shape_of
from aiasst.quantize.inventory import take_inventory
from aiasst.quantize.source import open_source
from tests.checkpoints import ARCHITECTURES

Tiny = Callable[[str], ModelFolder]


def _shape(folder: ModelFolder) -> ModelShape:
    source = open_source(folder)
    inventory = take_inventory(source.model.graph, source.table)
    return shape_of(source, cut_layers(source, inventory), inventory)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_is_counted_once(tiny: Tiny, name: str) -> None:
    source = open_source(tiny(name))
    inventory = take_inventory(source.model.graph, source.table)
    shape = _shape(tiny(name))
    counted = [matrix.name for matrix in shape.matrices]
    assert len(counted) == len(set(counted))
    # Tables of a few rows stay in their layer's graph.
    large = {found.matrix.name for found in inventory.found if 4 * found.matrix.elements >= 1024}
    assert set(counted) == large


def test_a_head_is_not_run_and_an_embedding_not_multiplied(tiny: Tiny) -> None:
    shape = _shape(tiny("llama"))
    assert [matrix.role for matrix in shape.head] == ["lm_head"]
    assert shape.vocabulary == 105
    assert shape.layers[-1].run == ()
    assert [matrix.role for matrix in shape.layers[0].lookups] == ["embed"]
    assert shape.layers[0].elements == 0
    first = shape.layers[1]
    assert [first.before(number) for number in range(4)] == [
        sum(group.elements for group in first.groups[:number]) for number in range(4)
    ]
    assert [group.folds for group in first.groups] == [True, False, True, False]


def test_an_encoder_has_no_head(tiny: Tiny) -> None:
    shape = _shape(tiny("bert"))
    assert shape.head == ()
    assert shape.vocabulary == 0


def test_a_tied_head_counts_in_the_last_layer_too(tiny: Tiny) -> None:
    shape = _shape(tiny("llama_tied"))
    assert shape.head == shape.layers[0].lookups
    assert shape.layers[-1].lookups == ()


@pytest.mark.parametrize(("name", "copies"), [("llama", 0), ("mistral", 0), ("gemma2", 1), ("bert", 1)])
def test_scores_are_held_where_attention_takes_them_whole(tiny: Tiny, name: str, copies: int) -> None:
    """GroupQueryAttention works tile by tile, unless scores are bounded."""
    shape = _shape(tiny(name))
    assert shape.score_copies == copies
    short, long = (shape.activations(shape.layers[1], 4, length) / length for length in (8, 4096))
    assert (long > 2 * short) == bool(copies)
