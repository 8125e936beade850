"""A model with its embedding and head in pieces is the same model, and each piece is a weight like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts import signature
from aiasst.artifacts.model_folder import WEIGHTS_NAME, ModelFolder
from aiasst.artifacts.recipe import Recipe
from aiasst.quantize import preview, quantize
from aiasst.quantize.inventory import take_inventory
from aiasst.quantize.matrix import Matrix
from aiasst.quantize.planning.budget import Budget
from aiasst.quantize.source import QuantizeSource, open_source
from aiasst.quantize.vocabulary import can_be_cut, cut_vocabulary
from aiasst.runtime.session import GraphSession
from tests import checkpoints

Tiny = Callable[[str], ModelFolder]
IDS = np.random.default_rng(5).integers(0, checkpoints.VOCABULARY, (2, 40))
BOUNDS = (7, 50, 51)
INT4 = {"format": "int4", "block_size": 32}
INT8 = {"format": "int8", "block_size": 32}


def _cut(folder: ModelFolder, cuts: Callable[[Matrix], tuple[int, ...]] = lambda _: BOUNDS) -> QuantizeSource:
    source = open_source(folder)
    return cut_vocabulary(source, take_inventory(source.model.graph, source.table), cuts)


def _answers(path: Path, ids: np.ndarray = IDS) -> np.ndarray:
    session = GraphSession.open(path)
    feeds = {name: np.ones_like(ids) for name in session.input_names if "past" not in name}
    feeds |= {signature.INPUT_IDS: ids}
    if signature.TOKEN_TYPE_IDS in feeds:
        feeds[signature.TOKEN_TYPE_IDS] = np.zeros_like(ids)
    if signature.ALL_LOGITS in session.optional_names:
        feeds[signature.ALL_LOGITS] = np.array(True)
    for name in set(session.input_names) - set(feeds):
        _, heads, _, size = session.input_shape(name)
        feeds[name] = np.zeros((len(ids), int(heads or 0), 0, int(size or 0)), np.float32)
    return session.run(feeds, [session.output_names[0]])[0]


def _saved(source: QuantizeSource, folder: Path) -> Path:
    ir.save(source.model, folder / "cut.onnx", external_data="cut.onnx.data")
    return folder / "cut.onnx"


@pytest.mark.parametrize("name", checkpoints.ARCHITECTURES)
def test_in_pieces_it_answers_the_same(tiny: Tiny, tmp_path: Path, name: str) -> None:
    folder = tiny(name)
    source = _cut(folder)
    pieces = [
        found.matrix for found in take_inventory(source.model.graph, source.table).found if found.matrix.vocabulary
    ]
    kinds = {(piece.looks_up, piece.multiplies) for piece in pieces}
    embedding, head, both = (True, False), (False, True), (True, True)
    assert kinds == ({both} if name in checkpoints.TIED else {embedding} if name == "bert" else {embedding, head})
    assert len(pieces) == len(kinds) * (len(BOUNDS) + 1)
    assert np.abs(_answers(_saved(source, tmp_path)) - _answers(folder.graph)).max() < 1e-5


def test_the_table_of_weights_names_the_pieces(tiny: Tiny) -> None:
    folder = tiny("llama_tied")
    table = _cut(folder).table
    assert table is not None
    pieces = {name: row for name, row in table.items() if row.rows is not None and row.shared_with is None}
    assert [row.rows for row in pieces.values()] == [(0, 7, 105), (7, 50, 105), (50, 51, 105), (51, 105, 105)]
    whole = folder.manifest.weights["embed_tokens.weight"]
    assert sum(row.bytes for row in pieces.values()) == whole.bytes
    assert {row.shared_with for row in table.values() if row.role == "lm_head"} == set(pieces)


def test_without_cuts_nothing_changes(tiny: Tiny) -> None:
    source = open_source(tiny("llama"))
    inventory = take_inventory(source.model.graph, source.table)
    before = [node.name for node in source.model.graph]
    assert cut_vocabulary(source, inventory, lambda _: ()) is source
    assert [node.name for node in source.model.graph] == before


def test_weights_of_layers_and_pieces_are_not_cut(tiny: Tiny) -> None:
    source = open_source(tiny("llama"))
    found = take_inventory(source.model.graph, source.table).found
    assert {each.matrix.role for each in found if can_be_cut(each)} == {"embed", "lm_head"}
    piece = next(each for each in found if can_be_cut(each))
    assert not can_be_cut(replace(piece, matrix=replace(piece.matrix, vocabulary=200)))


@settings(deadline=None, max_examples=15)
@given(cuts=st.sets(st.integers(1, checkpoints.VOCABULARY - 1), min_size=1, max_size=6))
def test_wherever_it_is_cut_each_token_finds_its_row(tiny: Tiny, cuts: set[int]) -> None:
    import tempfile

    folder = tiny("llama_tied")
    ids = np.arange(checkpoints.VOCABULARY)[None]
    with tempfile.TemporaryDirectory() as temporary:
        graph = _saved(_cut(folder, lambda _: tuple(sorted(cuts))), Path(temporary))
        assert np.abs(_answers(graph, ids) - _answers(folder.graph, ids)).max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
@pytest.mark.parametrize("algorithm", ["mse", "gptq"])
def test_frequent_tokens_get_a_format_of_their_own(tiny: Tiny, tmp_path: Path, name: str, algorithm: str) -> None:
    rules = [{"roles": ["embed", "lm_head"], "rows": "first 30%", "use": INT8}]
    recipe = Recipe.parse({"name": "rare", "description": "", "default": INT4, "rules": rules}, "recipe")
    made = quantize(tiny(name), tmp_path / "made", recipe=recipe, algorithm=algorithm, sequences=4)
    formats = {row.rows: row.format for row in made.manifest.weights.values() if row.rows is not None}
    assert formats == {(0, 31, 105): "int8-b32", (31, 105, 105): "int4-b32"}
    heads = [row for row in made.manifest.weights.values() if row.role == "lm_head"]
    assert {row.shared_with is not None for row in heads} == {name == "llama_tied"}
    again = quantize(tiny(name), tmp_path / "again", recipe=str(made.path / "recipe.yaml"), sequences=4)
    assert (again.path / WEIGHTS_NAME).read_bytes() == (made.path / WEIGHTS_NAME).read_bytes()
    assert np.isfinite(_answers(made.graph)).all()


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_a_budget_is_planned_piece_by_piece(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("aiasst.quantize.planning.units._FEWEST_ROWS", 20)
    plan = preview(tiny(name), budget=Budget(target_bpw=12.0), sequences=4)
    assert plan.mix is not None
    pieces = [cell.tokens for cell in plan.mix.cells if cell.tokens is not None]
    assert pieces == [(0, 26), (26, 52), (52, 105)] * (1 if name == "llama_tied" else 2)
    made = quantize(tiny(name), tmp_path / "made", budget=Budget(target_bpw=12.0), sequences=4)
    planned = {cell.tokens: cell.label for cell in plan.mix.cells if cell.role == "lm_head"}
    rows = {row.rows: row.format for row in made.manifest.weights.values() if row.role == "lm_head"}
    for (begin, end), label in ((tokens, label) for tokens, label in planned.items() if tokens is not None):
        # Neighbours of one format were put together again.
        assert {each for span, each in rows.items() if span is None or span[0] <= begin < end <= span[1]} == {label}
    assert made.manifest.quantization is not None
    assert made.manifest.quantization.bits_per_weight <= 12.0
