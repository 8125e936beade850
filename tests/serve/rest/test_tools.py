"""Calls in an answer: found however its family writes them, and in pieces as in the whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.tools import CallFilter, NamedTool, Tool, forced, offered, parsed

NAMES = ("weather", "time")
PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
ROME = '{"name": "time", "parameters": {"city": "Rome"}}'


def tool(name: str) -> Tool:
    return Tool.model_validate({"type": "function", "function": {"name": name}})


@pytest.mark.parametrize(
    ("text", "before", "called"),
    [
        (f"<tool_call>\n{PARIS}\n</tool_call>", "", ["weather"]),
        (
            f"Let me see.\n<tool_call>{PARIS}</tool_call>\n<tool_call>\n{ROME}</tool_call>",
            "Let me see.",
            ["weather", "time"],
        ),
        (f"<tool_call>{PARIS}", "", ["weather"]),
        (f"[TOOL_CALLS] [{PARIS}, {ROME}]", "", ["weather", "time"]),
        (f" [{PARIS}]", "", ["weather"]),
        (f"<|python_tag|>{ROME}", "", ["time"]),
        (f"{PARIS}; {ROME}", "", ["weather", "time"]),
        ('{"type": "function", "function": {"name": "time", "arguments": "{}"}}', "", ["time"]),
    ],
)
def test_the_ways_of_the_families_are_understood(text: str, before: str, called: list[str]) -> None:
    said, calls = parsed(text, NAMES)
    assert (said, [call.name for call in calls]) == (before, called)
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize(
    "text",
    [
        "The weather is fine.",
        '{"name": "launch", "arguments": {}}',
        f"{PARIS} is what I would call",
        '{"name": "weather", "arguments": {"city": ',
        "[1, 2, 3]",
        "<tool_call>nonsense</tool_call>",
        "[" * 5000,
        "",
    ],
)
def test_all_else_is_text(text: str) -> None:
    assert parsed(text, NAMES) == (text, [])


PIECES = st.sampled_from(
    [
        "Hello",
        " ",
        "\n",
        "<tool",
        "_call>",
        "<tool_call>",
        "</tool_call>",
        PARIS,
        ROME,
        "{",
        "[",
        "[TOOL_",
        "CALLS]",
        "<|",
        "a < b",
    ]
)


@given(st.lists(PIECES, max_size=8), st.data())
def test_in_pieces_as_in_the_whole(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    filtered, shown = CallFilter(NAMES), []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown.append(filtered.feed(text[begin:end]))
    rest, calls = filtered.end()
    whole, expected = parsed(text, NAMES)
    said = "".join(shown) + rest
    if not calls:
        assert said == text
    else:
        assert [call.name for call in calls] == [call.name for call in expected]
        assert said.split() == whole.split()
    assert CallFilter(()).feed(text) == text


def test_a_choice_must_name_a_tool() -> None:
    tools = [tool("weather"), tool("time")]
    launch = NamedTool.model_validate({"type": "function", "function": {"name": "launch"}})
    assert offered(tools, "none") == [] and offered(None, "auto") == [] and offered(tools, None) == tools
    assert forced(tools, "auto") is None
    for given_tools, choice in ((None, "required"), (tools, launch)):
        with pytest.raises(Refusal) as refused:
            offered(given_tools, choice)
        assert refused.value.parameter == "tool_choice"
