"""Lines that begin with a slash."""

from __future__ import annotations

import pytest

from aiasst.chat.commands import COMMANDS, Command, parse
from aiasst.errors import UsageError


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("Hello", "Hello"),
        (" /help", " /help"),
        ("//etc/hosts is a file", "/etc/hosts is a file"),
        ("/help", Command("help", "")),
        ("/?", Command("help", "")),
        ("/quit", Command("exit", "")),
        ("/system  Be kind. ", Command("system", "Be kind.")),
        ("/save a b.json force", Command("save", "a b.json force")),
    ],
)
def test_parse(line: str, parsed: object) -> None:
    assert parse(line) == parsed


def test_every_command_is_parsed() -> None:
    for name in COMMANDS:
        assert parse(f"/{name} x") == Command(name, "x")


def test_an_unknown_command_names_a_near_one() -> None:
    with pytest.raises(UsageError, match="no command /rset") as refused:
        parse("/rset")
    assert "did you mean /reset?" in refused.value.hint
    with pytest.raises(UsageError) as refused:
        parse("/etc/hosts")
    assert "written with //" in refused.value.hint


@pytest.mark.parametrize("name", ["save", "load"])
def test_a_command_that_lacks_its_argument(name: str) -> None:
    with pytest.raises(UsageError, match=f"/{name} lacks FILE"):
        parse(f"/{name} ")
