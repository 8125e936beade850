"""The gRPC interface over a real channel: calls, refusals, deadlines, cancellation, health, reflection, limits, TLS."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import given, settings
from hypothesis import strategies as st

from aiasst.errors import ArtifactError, ResourceError
from aiasst.serve import rpc
from aiasst.serve.refusals import GRPC_CODE, HTTP_STATUS, Reason, Refusal
from aiasst.serve.rpc import aiasst_pb2 as pb
from aiasst.serve.rpc import health
from aiasst.serve.rpc.aiasst_pb2_grpc import AssistantStub
from aiasst.serve.rpc.server import RpcServer
from aiasst.serve.rpc.statuses import address_of, answering
from aiasst.serve.service import Caller
from aiasst.serve.settings import Limits, ServeSettings, Tls
from aiasst.serve.watch import Unwatched, Watch
from tests.serve.fakes import FakeService

SETTINGS = ServeSettings(grpc_port=0)
Run = Callable[[Coroutine[Any, Any, object]], object]


async def read_all(call: Any) -> list[str]:
    return [piece.text async for piece in call]


def anyone(authorization: str | None, address: str) -> Caller:
    return Caller()


def only_anna(authorization: str | None, address: str) -> Caller:
    if authorization != "Bearer secret":
        raise Refusal("unauthorized", "no valid key", "send one")
    return Caller("anna")


@asynccontextmanager
async def started(
    service: FakeService,
    settings: ServeSettings = SETTINGS,
    authorize: Any = anyone,
    watch: Watch = Unwatched(),  # noqa: B008 - has no state
    **options: Any,
) -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel]]:
    server = await rpc.start(settings, service, authorize, watch)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", **options) as channel:
        try:
            yield server, channel
        finally:
            await server.stop(None)


def test_generate_answers_whole_and_in_pieces(run: Run) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service) as (_, channel):
            stub = AssistantStub(channel)
            request = pb.GenerateRequest(prompt="one two three", params=pb.Params(max_tokens=2, seed=0, temperature=0))
            answer = await stub.Generate(request)
            assert answer.text == "three two "
            assert (answer.model, answer.finish_reason) == ("story", pb.FINISH_REASON_LENGTH)
            assert answer.usage == pb.Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2)
            pieces = [piece async for piece in stub.GenerateStream(request)]
            assert [piece.text for piece in pieces] == ["three ", "two ", ""]
            assert not pieces[0].HasField("usage")
            assert pieces[-1].usage == answer.usage
            assert pieces[-1].finish_reason == pb.FINISH_REASON_LENGTH
            # Zero is said, not left out.
            sampling = service.asked[0][1].sampling
            assert (sampling.temperature, sampling.seed) == (0, 0)

    run(work())


def test_every_parameter_arrives(run: Run) -> None:
    async def work() -> None:
        service = FakeService()
        params = pb.Params(
            max_tokens=5, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1, frequency_penalty=0.5,
            presence_penalty=-0.5, logit_bias={7: -100.0}, logprobs=1, seed=2**40, stop=["a", "b"],
            json_schema='{"type": "object"}', deadline_seconds=9.0, priority=-3,
        )  # fmt: skip
        assert {field.name for field, _ in params.ListFields()} | {"regex", "grammar"} == set(
            pb.Params.DESCRIPTOR.fields_by_name
        )
        async with started(service) as (_, channel):
            answer = await AssistantStub(channel).Generate(pb.GenerateRequest(prompt="one two", params=params))
        request = service.asked[0][1]
        assert request.sampling.logit_bias == {7: -100.0}
        assert (request.sampling.top_k, request.sampling.seed) == (3, 2**40)
        assert request.stop == ("a", "b")
        assert request.constraint is not None
        assert request.constraint.text == '{"type": "object"}'
        assert (request.deadline_seconds, request.priority) == (9.0, -3)
        assert [report.chosen.text for report in answer.logprobs] == ["two", "one"]
        assert [token.logprob for token in answer.logprobs[0].top] == [-0.5, -1.5]

    run(work())


def test_a_chat_and_a_query_go_through_the_template(run: Run) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service) as (_, channel):
            stub = AssistantStub(channel)
            chat = pb.Chat(messages=[pb.Message(role="user", content="hello you")])
            answer = await stub.Generate(pb.GenerateRequest(model="chat", chat=chat))
            assert answer.text.split() == ["you", "<user>hello"]
            query = pb.QueryRequest(model="chat", query="where?", context=["It is here."])
            answer = await stub.Query(query)
            assert answer.text.split()[0] == "where?"
            pieces = [piece.text async for piece in stub.QueryStream(query)]
            assert "".join(pieces) == answer.text
        messages = service.asked[1][1].messages
        assert messages is not None
        assert "It is here." in messages[0].content

    run(work())


def test_embed_and_list_models(run: Run) -> None:
    async def work() -> None:
        async with started(FakeService()) as (_, channel):
            stub = AssistantStub(channel)
            answer = await stub.Embed(pb.EmbedRequest(model="minilm", texts=["ab", "a b c"]))
            assert [list(vector.values) for vector in answer.vectors] == [[2, 0.5, -1], [5, 0.5, -1]]
            assert answer.prompt_tokens == 4
            models = (await stub.ListModels(pb.ListModelsRequest())).models
            assert [(model.name, model.kind) for model in models][-1] == ("minilm", "encoder")
            for wrong in (pb.EmbedRequest(model="minilm"), pb.EmbedRequest(model="story", texts=["a"])):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Embed(wrong)
                assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    run(work())


@pytest.mark.parametrize("reason", HTTP_STATUS)
@pytest.mark.parametrize("call", ["Generate", "GenerateStream"])
def test_every_refusal_has_its_status_message_and_metadata(run: Run, reason: Any, call: str) -> None:
    refusal = Refusal(reason, "Das geht so nicht", "später", retry_after=2.2, parameter="prompt")

    async def work() -> None:
        async with started(FakeService(refuse=refusal)) as (_, channel):
            made = getattr(AssistantStub(channel), call)(pb.GenerateRequest(prompt="one two"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (made if call == "Generate" else made.read())
        assert caught.value.code() == grpc.StatusCode[GRPC_CODE[reason]]
        assert caught.value.details() == "Das geht so nicht; später"
        told = dict(caught.value.trailing_metadata() or ())
        assert (told["retry-after"], told["aiasst-reason"], told["aiasst-param"]) == ("3", reason, "prompt")

    run(work())


def test_a_refusal_on_the_way_comes_after_the_pieces(run: Run) -> None:
    async def work() -> None:
        async with started(FakeService(refuse=Refusal("stopping", "going down"), refuse_after=2)) as (_, channel):
            pieces = AssistantStub(channel).GenerateStream(pb.GenerateRequest(prompt="one two three"))
            seen = []
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for piece in pieces:
                    seen.append(piece.text)
        assert seen == ["three ", "two "]
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    run(work())


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.GenerateRequest(), "one of 'query', 'messages' and 'prompt'"),
        (pb.GenerateRequest(prompt="a", params=pb.Params(temperature=-1)), "temperature is -1"),
        (pb.GenerateRequest(prompt="a", params=pb.Params(temperature=float("nan"))), "temperature is nan"),
        (pb.GenerateRequest(prompt="a", params=pb.Params(json_schema="{")), "not valid JSON"),
        (pb.GenerateRequest(prompt="a", params=pb.Params(json_schema="[" * 100_000)), "not valid JSON"),
        (pb.GenerateRequest(prompt="a", params=pb.Params(json_schema="3")), "json_schema"),
        (pb.GenerateRequest(prompt="a", params=pb.Params(deadline_seconds=0)), "deadline_seconds"),
        (pb.GenerateRequest(prompt="a", model="nobody"), "there is no model 'nobody'"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(run: Run, request_: pb.GenerateRequest, words: str) -> None:
    async def work() -> None:
        async with started(FakeService()) as (_, channel):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AssistantStub(channel).Generate(request_)
        assert words in (caught.value.details() or "")
        assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)

    run(work())


@pytest.mark.parametrize("call", ["Generate", "GenerateStream"])
def test_the_deadline_of_a_call_ends_its_work(run: Run, call: str) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service) as (_, channel):
            made = getattr(AssistantStub(channel), call)(pb.GenerateRequest(prompt="wait"), timeout=0.3)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (made if call == "Generate" else read_all(made))
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await service.ended.wait()
            assert service.under_way == 0
        asked = service.asked[0][1].deadline_seconds
        assert asked is not None
        assert asked <= 0.3

    run(work())


def test_a_deadline_of_the_request_gives_what_there_is(run: Run) -> None:
    async def work() -> None:
        async with started(FakeService()) as (_, channel):
            request = pb.GenerateRequest(prompt="wait", params=pb.Params(deadline_seconds=0.05))
            answer = await AssistantStub(channel).Generate(request, timeout=50)
            assert answer.finish_reason == pb.FINISH_REASON_DEADLINE

    run(work())


@pytest.mark.parametrize("call", ["Generate", "GenerateStream"])
def test_cancelling_a_call_ends_its_work(run: Run, call: str) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service) as (_, channel):
            made = getattr(AssistantStub(channel), call)(pb.GenerateRequest(prompt="wait"))
            reading = asyncio.ensure_future(made if call == "Generate" else read_all(made))
            while not service.asked:
                await asyncio.sleep(0.01)
            made.cancel()
            await service.ended.wait()
            assert service.under_way == 0
            with pytest.raises(asyncio.CancelledError):
                await reading

    run(work())


def test_a_client_that_does_not_read_holds_the_answer_back(run: Run) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service) as (_, channel):
            made = AssistantStub(channel).GenerateStream(pb.GenerateRequest(prompt="endless"))
            await made.read()
            before = -1
            while service.yielded != before:
                before = service.yielded
                await asyncio.sleep(0.3)
            assert service.yielded < 2000  # of 10 kB each
            made.cancel()
            await service.ended.wait()

    run(work())


def test_a_client_that_goes_ends_its_work(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service) as (server, channel):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as other:
                pieces = AssistantStub(other).GenerateStream(pb.GenerateRequest(prompt="endless"))
                await pieces.read()
            await service.ended.wait()
            assert service.under_way == 0
            assert (await AssistantStub(channel).Generate(pb.GenerateRequest(prompt="a"))).text == "a "

    run(work())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_key_is_asked_for_by_every_call_but_health(run: Run) -> None:
    async def work() -> None:
        service = FakeService()
        async with started(service, authorize=only_anna) as (_, channel):
            stub = AssistantStub(channel)
            for call in (
                stub.Generate(pb.GenerateRequest(prompt="a")),
                stub.GenerateStream(pb.GenerateRequest(prompt="a")).read(),
                stub.Query(pb.QueryRequest(query="a")),
                stub.QueryStream(pb.QueryRequest(query="a")).read(),
                stub.Embed(pb.EmbedRequest(model="minilm", texts=["a"])),
                stub.ListModels(pb.ListModelsRequest(), metadata=(("authorization", "Bearer wrong"),)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            await stub.Generate(pb.GenerateRequest(prompt="a"), metadata=(("authorization", "Bearer secret"),))
            assert service.asked[-1][2] == Caller("anna")
            checked = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert checked.status == health_pb2.HealthCheckResponse.SERVING

    run(work())


def test_every_call_is_a_line_in_the_log_and_what_it_refuses_is_counted(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[tuple[str, str, str]] = []

    class Counting(Unwatched):
        def refused(self, model: str, caller: str, reason: Reason) -> None:
            counted.append((model, caller, reason))

    class Broken(FakeService):
        def model(self, name: str) -> Any:
            raise KeyError("a secret")

    async def work() -> None:
        metadata = (("authorization", "Bearer secret"),)
        for service, words, sent in (
            (FakeService(), "one", metadata),
            (FakeService(), "one", ()),
            (FakeService(refuse=Refusal("queue_full", "full")), "one", metadata),
            (Broken(), "one", metadata),
        ):
            async with started(service, authorize=only_anna, watch=Counting()) as (_, channel):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                try:
                    await AssistantStub(channel).Generate(pb.GenerateRequest(prompt=words), metadata=sent)
                except grpc.aio.AioRpcError as error:
                    assert "secret" not in (error.details() or "")

    with caplog.at_level("INFO", "aiasst"):
        run(work())
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if "requests" in record.name]
    path = "GRPC /aiasst.v1.Assistant/Generate"
    assert lines == [
        ("INFO", f"{path} OK"),
        ("INFO", f"{path} UNAUTHENTICATED"),
        ("INFO", f"{path} RESOURCE_EXHAUSTED"),
        ("ERROR", f"{path} INTERNAL"),
    ]
    assert counted == [("", "", "unauthorized"), ("", "", "queue_full")]
    assert "a secret" in caplog.text


def test_health_follows_the_service(run: Run) -> None:
    async def work() -> None:
        service = FakeService()
        serving, down = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        async with started(service) as (server, channel):
            stub = health_pb2_grpc.HealthStub(channel)

            async def now(name: str) -> int:
                return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)

            watched = stub.Watch(health_pb2.HealthCheckRequest(service="aiasst.v1.Assistant"))
            assert (await watched.read()).status == serving
            assert [await now(""), await now("aiasst.v1.Assistant")] == [serving, serving]
            service.ready = False
            assert [await now(""), await now("aiasst.v1.Assistant")] == [down, down]
            assert (await watched.read()).status == down
            service.ready = True
            assert (await watched.read()).status == serving
            service.accepting = False
            assert await now("") == down
            strange = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
            assert (await strange.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await now("nobody")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            service.accepting = True
            listed = (await stub.List(health_pb2.HealthListRequest())).statuses
            assert {name: told.status for name, told in listed.items()} == {"": serving, "aiasst.v1.Assistant": serving}
            # Who watches is told, and does not hold the server up.
            stopping = asyncio.ensure_future(server.stop(50))
            last = None
            while (told := await watched.read()) is not grpc.aio.EOF:
                last = told.status
            assert last == down
            await stopping

    run(work())


def test_not_everyone_may_watch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST_WATCHING", 2)

    async def work() -> None:
        async with started(FakeService()) as (_, channel):
            stub = health_pb2_grpc.HealthStub(channel)
            watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for each in watching:
                await each.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Watch(health_pb2.HealthCheckRequest()).read()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            watching[0].cancel()
            await asyncio.sleep(0.2)
            assert (await stub.Watch(health_pb2.HealthCheckRequest()).read()).status

    run(work())


def test_reflection_tells_the_interface(run: Run) -> None:
    async def work() -> None:
        async with started(FakeService()) as (server, _):

            def reflected() -> tuple[list[str], list[str]]:
                with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                    database = ProtoReflectionDescriptorDatabase(channel)
                    service = DescriptorPool(database).FindServiceByName("aiasst.v1.Assistant")
                    return list(database.get_services()), [method.name for method in service.methods]

            services, methods = await asyncio.to_thread(reflected)
            assert set(services) == {
                "aiasst.v1.Assistant",
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
            }
            assert methods == ["Generate", "GenerateStream", "Query", "QueryStream", "Embed", "ListModels"]

    run(work())


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_a_message_that_is_too_large_is_refused(run: Run, compression: grpc.Compression | None) -> None:
    settings = ServeSettings(grpc_port=0, limits=Limits(most_body_bytes=10_000))

    async def work() -> None:
        service = FakeService()
        async with started(service, settings, compression=compression) as (_, channel):
            stub = AssistantStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Generate(pb.GenerateRequest(prompt="a" * 1_000_000))
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert service.asked == []
            assert (await stub.Generate(pb.GenerateRequest(prompt="a"))).text == "a "

    run(work())


def test_bytes_that_are_no_message_are_refused_and_the_server_goes_on(run: Run) -> None:
    async def work() -> None:
        async with started(FakeService()) as (server, channel):
            raw = channel.unary_unary("/aiasst.v1.Assistant/Generate")
            with pytest.raises(grpc.aio.AioRpcError, match=r"no message aiasst\.v1\.GenerateRequest") as caught:
                await raw(b"\xff" * 100)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/aiasst.v1.Assistant/Nothing")(b"")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
            await writer.drain()
            writer.close()
            assert (await AssistantStub(channel).Generate(pb.GenerateRequest(prompt="a"))).text == "a "

    run(work())


@settings(max_examples=30)
@given(
    data=st.binary(max_size=60),
    method=st.sampled_from(pb.DESCRIPTOR.services_by_name["Assistant"].methods_by_name.keys()),
)
def test_whatever_bytes_come_they_are_answered(data: bytes, method: str) -> None:
    """The same reader as over the wire, without the wire: bytes are a message or a refusal."""
    kind = getattr(pb, pb.DESCRIPTOR.services_by_name["Assistant"].methods_by_name[method].input_type.name)

    class Ended(Exception):  # noqa: N818
        pass

    class Context:
        async def abort(self, code: grpc.StatusCode, details: str, metadata: object) -> None:
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            raise Ended

    async def call(message: object, context: object) -> object:
        assert isinstance(message, kind)
        return message

    answered = answering(call, kind, f"/aiasst.v1.Assistant/{method}", None)
    try:
        assert isinstance(asyncio.run(answered(data, Context())), kind)
    except Ended:
        with pytest.raises(DecodeError):
            kind.FromString(data)


def test_stop_lets_calls_end(run: Run) -> None:
    async def work() -> None:
        async with started(FakeService()) as (server, channel):
            stub = AssistantStub(channel)
            request = pb.GenerateRequest(prompt="wait", params=pb.Params(deadline_seconds=0.3))
            call = stub.Generate(request)
            await asyncio.sleep(0.1)
            await server.stop(10)
            assert (await call).finish_reason == pb.FINISH_REASON_DEADLINE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Generate(request)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

    run(work())


def test_a_port_that_is_taken_is_told(run: Run) -> None:
    async def work() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(ResourceError, match="cannot listen"):
                await rpc.start(ServeSettings(grpc_port=taken.getsockname()[1]), FakeService(), anyone)

    run(work())


def certificate(folder: Path) -> Tls:
    tls = Tls(folder / "cert.pem", folder / "key.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    form = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *form, "-keyout", str(tls.key), "-out", str(tls.certificate), *subject]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return tls


def test_with_a_certificate_only_tls_is_spoken(run: Run, tmp_path: Path) -> None:
    tls = certificate(tmp_path)

    async def work() -> None:
        async with started(FakeService(), ServeSettings(grpc_port=0, tls=tls)) as (server, plain):
            trusted = grpc.ssl_channel_credentials(tls.certificate.read_bytes())
            async with grpc.aio.secure_channel(f"localhost:{server.port}", trusted) as channel:
                assert (await AssistantStub(channel).Generate(pb.GenerateRequest(prompt="a"))).text == "a "
            with pytest.raises(grpc.aio.AioRpcError):
                await AssistantStub(plain).Generate(pb.GenerateRequest(prompt="a"), timeout=5)

    run(work())


def test_files_that_are_no_certificate_are_told_before_anyone_connects(run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "cert.pem"
    wrong.write_text("hello")
    for tls, words in (
        (Tls(wrong, tmp_path / "absent.pem"), "cannot be read"),
        (Tls(wrong, wrong), "no private key in PEM"),
    ):
        with pytest.raises(ArtifactError, match=words):
            run(rpc.start(ServeSettings(grpc_port=0, tls=tls), FakeService(), anyone))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:50000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "::1"),
        ("ipv6:[fe80::1]:50000", "fe80::1"),
        ("unix:/tmp/socket", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address
