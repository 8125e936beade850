"""The service against its own OpenAPI document: whatever is asked, no failure, and every answer as documented.

Source: schemathesis, whose generator makes requests that fit the document and requests that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.whole import KEY, PATIENCE, Whole, whole

EXAMPLES = 10
"""A method and path."""
MOST_TOKENS = 4
"""Of a generated request's answer: what is tested is the form, not the text."""
LENGTHS = {
    "/v1/query": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/responses": "max_output_tokens",
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, chatty: Path) -> Iterator[Whole]:
    models = (f"chat={chatty}",)
    with whole(tmp_path_factory.mktemp("openapi"), models=models) as running:
        yield running


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
def test_every_answer_is_as_documented(service: Whole, mode: GenerationMode) -> None:
    with service.client() as client:
        document = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    document.config.update(base_url=service.url)
    failures, asked = [], 0
    for result in document.get_all_operations():
        operation = result.ok()
        try:
            asked += try_out(operation.as_strategy(generation_mode=mode))
        except (AssertionError, BaseExceptionGroup) as failure:
            failures.append(f"{operation.method.upper()} {operation.path}: {failure}")
    assert not failures, "\n\n".join(failures)
    assert asked > 0


def try_out(cases: st.SearchStrategy[schemathesis.Case]) -> int:
    """Ask for some of `cases`; how many were asked."""
    asked = 0

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def answered(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        response = ask(case)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    try:
        answered()
    except Unsatisfiable:
        # Nothing about this operation can be wrong: it takes nothing.
        return 0
    return asked


def ask(case: schemathesis.Case) -> Any:
    """The answer to a generated request, for a model that is there, and a short one."""
    if isinstance(case.body, dict):
        if isinstance(case.body.get("model"), str):
            case.body["model"] = "chat"
        shorten(case.body, case.path)
    return case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE)


def shorten(body: dict[str, Any], path: str) -> None:
    """Ask for a few tokens, unless what is said of their number is wrong, and is meant to be."""
    name = LENGTHS.get(path)
    inner = body.setdefault("params", {}) if path == "/v1/query" else body
    if name is None or not isinstance(inner, dict):
        return
    for each in LENGTHS.values():
        if isinstance(inner.get(each), int) and inner[each] > MOST_TOKENS:
            inner[each] = MOST_TOKENS
    if not any(each in inner for each in LENGTHS.values()):
        inner[name] = MOST_TOKENS
