"""Every error carries a message and a hint, and survives a process border."""

from __future__ import annotations

import pickle

import pytest

from aiasst import errors


def every_error() -> list[type[errors.AiasstError]]:
    """Of the tree; what a service refuses (serve.refusals) never leaves its process."""
    found, queue = [], [errors.AiasstError]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue += [below for below in kind.__subclasses__() if below.__module__ == errors.__name__]
    return found


@pytest.mark.parametrize("kind", every_error())
def test_survives_pickle_and_stands_in_the_tree(kind: type[errors.AiasstError]) -> None:
    error = kind("what", "next")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.hint, copy.exit_code) == (error.message, error.hint, error.exit_code)
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_refused_budget_exits_with_three() -> None:
    assert {kind.exit_code for kind in every_error()} == {1, 3}
    assert errors.BudgetRefused.exit_code == 3


def test_a_missing_extra_names_the_install_command() -> None:
    assert errors.MissingExtraError("torch", "convert").hint == "pip install 'aiasst[convert]'"
