"""A profile taken apart: names to roles, shares that add up, bytes that are the weights'."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.artifacts.model_folder import Weight
from aiasst.bench.operators import BETWEEN, PYTHON, Operator, Pass, Roles, Run, breakdown, runs_of

WEIGHTS = {
    "embed_tokens.weight": Weight(role="embed", layer=None, shape=(8, 4), format="int8-b128", bytes=1000),
    "lm_head.weight": Weight(
        role="lm_head", layer=None, shape=(4, 8), format="int8-b128", bytes=0, shared_with="embed_tokens.weight"
    ),
    "layers.1.o_proj.weight": Weight(role="o", layer=1, shape=(4, 4), format="w8a8", bytes=300),
    "layers.10.o_proj.weight": Weight(role="o", layer=10, shape=(4, 4), format="fp32", bytes=500),
    "layers.1.gate_up_proj.weight": Weight(role="gate_up", layer=1, shape=(4, 8), format="int4-b32", bytes=700),
    "layers.1.norm.weight": Weight(role="norm", layer=1, shape=(4,), format="fp32", bytes=16),
}
CUT = {
    f"lm_head.{begin}-{end}.weight": Weight(
        role="lm_head", layer=None, shape=(4, end - begin), format="int4", bytes=end - begin, rows=(begin, end, 30)
    )
    for begin, end in ((0, 10), (10, 30))
}


def node(name: str, kind: str, **details: Any) -> Operator:
    return Operator(name, kind, 0, 1, details)


@pytest.mark.parametrize(
    ("operator", "role", "read"),
    [
        (node("layers.10.o_proj", "MatMul"), "o", 500),
        (node("layers.1.o_proj.integer", "MatMulIntegerToFloat"), "o", 300),
        (node("layers.1.o_proj/MatMulAddFusion", "Gemm"), "o", 300),
        (node("layers.1.o_proj.scaled", "Mul"), "o", 0),
        (node("layers.1.gate_up_proj.split", "Split"), "gate_up", 0),
        (node("lm_head", "MatMulNBits"), "lm_head", 1000),
        (node("layers.1.norm", "SkipSimplifiedLayerNormalization"), "norm", 0),
        (node("other_norm", "RMSNormalization"), "norm", 0),
        (node("layers.1.attention", "GroupQueryAttention"), "attention", 0),
        (node("Gather_0", "Gather", output_type_shape=[{"float": [1, 1, 4]}]), "embed", 0),
        (node("lengths/Gather", "Gather", output_type_shape=[{"int64": []}]), "lengths", 0),
        (node("x", "Gather", output_type_shape=[{"int64": []}]), "other", 0),
        (node("layers.1.norm.out0.scale", "Div"), "activations", 0),
        (node("layers.1.x.out0.rows.uint8", "QuantizeLinear"), "activations", 0),
        (node("model/layers.1/mlp/Mul_3", "Mul"), "mlp", 0),
        (node("", "Add"), "other", 0),
    ],
)
def test_roles_and_bytes_by_name(operator: Operator, role: str, read: int) -> None:
    roles = Roles(WEIGHTS)
    assert (roles.role(operator), roles.weight_bytes(operator)) == (role, read)


def test_pieces_of_a_cut_head_are_found_by_their_first_row() -> None:
    roles = Roles(CUT)
    assert roles.weight_bytes(node("lm_head.0", "MatMulNBits")) == 10
    assert roles.weight_bytes(node("lm_head.10", "MatMulNBits")) == 20
    assert roles.role(node("lm_head.10", "MatMulNBits")) == "lm_head"


def event(name: str, start: int, duration: int, **args: Any) -> dict[str, Any]:
    category = "Node" if args else "Session"
    return {"cat": category, "pid": 1, "tid": 1, "ph": "X", "ts": start, "dur": duration, "name": name, "args": args}


def test_a_profile_is_cut_into_its_runs() -> None:
    events = [
        event("session_initialization", 0, 5),
        event("a_kernel_time", 10, 2, op_name="MatMul"),
        event("b_kernel_time", 13, 4, op_name="Add"),
        event("SequentialExecutor::Execute", 9, 9),
        event("model_run", 9, 7),
        event("a_kernel_time", 20, 1, op_name="MatMul"),
        event("model_run", 19, 3),
        {"ph": "M", "name": "process_name", "pid": 1, "args": {}},
    ]
    first, second = runs_of(events)
    assert [(o.name, o.kind, o.start) for o in first.operators] == [("a", "MatMul", 10), ("b", "Add", 13)]
    # Cut to the end of its run, which both clocks' rounding may put a microsecond earlier.
    assert first.operators[1].duration == 3
    assert (second.start, second.duration, len(second.operators)) == (19, 3, 1)
    assert runs_of([]) == []


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    """Operators within their run, the run within its pass."""
    names = ("layers.1.o_proj", "lm_head", "layers.1.attention", "x")
    durations = draw(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=8))
    operators = tuple(
        Operator(names[number % 4], ("MatMulNBits", "GroupQueryAttention", "Add")[number % 3], 0, duration)
        for number, duration in enumerate(durations)
    )
    ran = sum(durations) + draw(st.floats(0, 1e3))
    inside = ran + draw(st.floats(0, 1e3))
    return Pass((inside + draw(st.floats(0, 1e3))) / 1e6, inside / 1e6, (Run(0, ran, operators),))


@given(st.lists(passes(), min_size=1, max_size=7))
@settings(deadline=None)
def test_shares_add_up_to_the_whole_pass(found: list[Pass]) -> None:
    result = breakdown(found, WEIGHTS)
    assert sum(row.share for row in result.rows) == pytest.approx(1)
    assert sum(row.milliseconds for row in result.rows) == pytest.approx(result.milliseconds)
    assert all(row.share >= 0 for row in result.rows)
    assert [row.operator for row in result.rows[-2:]] == [BETWEEN, PYTHON]
    assert result.passes == (len(found) + 1) // 2
    # The faster half is no slower than the mean of all.
    assert result.milliseconds <= sum(one.seconds for one in found) / len(found) * 1000 * (1 + 1e-9)


def test_weights_are_read_at_bytes_a_time() -> None:
    run = Run(
        0, 20, (Operator("layers.10.o_proj", "MatMulNBits", 0, 5), Operator("layers.1.o_proj", "MatMulNBits", 5, 3))
    )
    result = breakdown([Pass(25e-6, 22e-6, (run,))], WEIGHTS)
    row = result.rows[0]
    assert (row.operator, row.role, row.calls) == ("MatMulNBits", "o", 2)
    assert row.gigabytes_per_second == pytest.approx(800 / 8e-6 / 1e9)
    assert [row.milliseconds for row in result.rows[-2:]] == pytest.approx([14e-3, 3e-3])
