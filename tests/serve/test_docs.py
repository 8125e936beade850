"""docs/serve-protocols.md: its requests are requests, its programs run, its tables are those of the code."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from aiasst.engine.fields import ParameterFields
from aiasst.serve import rpc, stream
from aiasst.serve.forms import AskFields, ParamsFields
from aiasst.serve.query import QueryFields
from aiasst.serve.refusals import GRPC_CODE
from aiasst.serve.rpc import aiasst_pb2 as pb
from aiasst.serve.service import Caller
from aiasst.serve.settings import Limits, ServeSettings
from tests.serve.fakes import FakeService
from tests.serve.serving import application, run, served

TEXT = (Path(__file__).parents[2] / "docs" / "serve-protocols.md").read_text(encoding="utf-8")


def test_the_requests_of_curl_and_grpcurl_are_requests() -> None:
    curl = [json.loads(found) for found in re.findall(r"^curl .*? -d '(.*?)'$", TEXT, re.DOTALL | re.MULTILINE)]
    assert len(curl) == 2
    for body in curl:
        QueryFields.parse(body, "the example")
    grpcurl = re.findall(r"^grpcurl .*?-d '(.*?)'.*?Assistant/(\w+)$", TEXT, re.DOTALL | re.MULTILINE)
    assert len(grpcurl) == 2
    service = pb.DESCRIPTOR.services_by_name["Assistant"]
    for body, method in grpcurl:
        kind: Any = getattr(pb, service.methods_by_name[method].input_type.name)
        json_format.Parse(body, kind())


def test_the_messages_of_the_socket_are_messages() -> None:
    sent = [
        json.loads(found)
        for found in re.findall(r"^→ (.*)$|^echo '(.*)' \| websocat", TEXT, re.M)
        for found in found
        if found
    ]
    assert len(sent) == 4
    for message in sent:
        if "cancel" not in message:
            assert message.pop("id")
            AskFields.checked(message, "the example")


def test_every_parameter_is_told() -> None:
    rows = re.search(r"\| key of `params` .*?\n\n", TEXT, re.DOTALL)
    assert rows is not None
    told = {name for row in rows[0].strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == set(ParamsFields.model_fields) == set(pb.Params.DESCRIPTOR.fields_by_name)
    assert set(ParameterFields.model_fields) < told


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"up to {stream.MOST_AT_ONCE} answers" in TEXT
    assert f"{stream.MOST_WRONG} messages in a row" in TEXT
    assert f"nothing was read for {stream.UNREAD_SECONDS:g} seconds" in TEXT
    assert f"({Limits().most_body_bytes // 2**20} MiB)" in TEXT
    assert set(re.findall(r"`([A-Z_]+)`", TEXT)) == set(GRPC_CODE.values())


@pytest.mark.parametrize("number", [0, 1])
def test_the_programs_run(number: int) -> None:
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(programs) == 2

    def anyone(authorization: str | None, address: str) -> Caller:
        return Caller()

    async def work() -> str:
        service = FakeService()
        server = await rpc.start(ServeSettings(grpc_port=0), service, anyone)
        async with served(application(service, Limits())) as port:
            program = programs[number].replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            program = program.replace("127.0.0.1:9090", f"127.0.0.1:{server.port}")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                await asyncio.to_thread(exec, compile(program, "docs/serve-protocols.md", "exec"), {})
        await server.stop(None)
        return said.getvalue()

    assert run(work()) == "time a upon Once "
