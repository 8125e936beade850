"""One contract for every file in providers/."""

from __future__ import annotations

import onnxruntime
import pytest

from aiasst.errors import ResourceError
from aiasst.runtime import providers
from aiasst.runtime.providers._loads import loads
from aiasst.runtime.session import GraphSession, SessionSettings


@pytest.mark.parametrize("name", providers.names())
def test_a_provider_says_whether_it_loads_and_then_it_does(name: str) -> None:
    module = providers.load(name)
    available, reason = module.available()
    assert reason
    assert all(isinstance(value, str) for value in module.options(SessionSettings()).values())
    if available:
        assert module.NAME in onnxruntime.get_available_providers()
    else:
        assert module.NAME in reason
        with pytest.raises(ResourceError, match=f"'{name}' cannot be used"):
            GraphSession.open(b"", SessionSettings(provider=name))


def test_the_cpu_is_always_there() -> None:
    assert providers.load("cpu").available() == (True, "loads")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_listed_but_fails_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    available, reason = loads("CUDAExecutionProvider", {}, "onnxruntime-gpu")
    assert not available
    assert "CUDAExecutionProvider" in reason
