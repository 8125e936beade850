"""The gRPC server: where it listens, with what certificate and limits, and how it stops. Knows no call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from aiasst.errors import ArtifactError, ResourceError
from aiasst.serve.refusals import Refusal
from aiasst.serve.rpc import aiasst_pb2
from aiasst.serve.rpc.health import Health
from aiasst.serve.rpc.servicer import Assistant
from aiasst.serve.rpc.statuses import Authorize, abort, answering, caller_of
from aiasst.serve.service import Service
from aiasst.serve.settings import Limits, ServeSettings, Tls
from aiasst.serve.watch import Watch

_ASSISTANT = aiasst_pb2.DESCRIPTOR.services_by_name["Assistant"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_SERVICES = (
    _ASSISTANT.full_name,
    _HEALTH.full_name,
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name,
)
_KEEPALIVE_MILLISECONDS = 30_000
"""A client that answers no ping for as long again is gone, and so are its calls."""


class RpcServer:
    """A server that listens; `start` makes one."""

    def __init__(self, server: grpc.aio.Server, health: Health, port: int) -> None:
        self._server = server
        self._health = health
        self.port = port
        """Where it listens."""

    @classmethod
    async def start(cls, settings: ServeSettings, service: Service, authorize: Authorize, watch: Watch) -> RpcServer:
        """See `rpc.start`."""
        if settings.grpc_port is None:
            raise ValueError("the settings have no gRPC port")
        credentials = None if settings.tls is None else _credentials(settings.tls)
        server = grpc.aio.server(
            options=_options(settings.limits), maximum_concurrent_rpcs=settings.limits.most_connections
        )
        health = Health(service, ("", _ASSISTANT.full_name))
        assistant = Assistant(service, authorize)
        server.add_generic_rpc_handlers(
            (_handler(_ASSISTANT, assistant, aiasst_pb2, watch), _handler(_HEALTH, health, health_pb2, None))
        )
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(authorize), server)
        port = _bind(server, settings.host, settings.grpc_port, credentials)
        await server.start()
        return cls(server, health, port)

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and end those under way after `grace` seconds; None: at once."""
        self._health.end()
        await self._server.stop(grace)


def _handler(
    service: ServiceDescriptor, calls: object, messages: ModuleType, watch: Watch | None
) -> grpc.GenericRpcHandler:
    """The calls of a service, which `calls` has by their names, each with the types that the interface gives it."""
    handlers = {}
    for method in service.methods:
        kind = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        read = getattr(messages, method.input_type.name)
        call = answering(getattr(calls, method.name), read, f"/{service.full_name}/{method.name}", watch)
        written = getattr(messages, method.output_type.name).SerializeToString
        handlers[method.name] = kind(call, response_serializer=written)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]  # the package ships no types
    """What the interface is, told to who may ask."""

    def __init__(self, authorize: Authorize) -> None:
        super().__init__(_SERVICES)
        self._authorize = authorize

    async def ServerReflectionInfo(
        self,
        request_iterator: AsyncIterator[reflection_pb2.ServerReflectionRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answers to questions about services, files and symbols."""
        try:
            caller_of(context, self._authorize)
        except Refusal as refusal:
            await abort(context, refusal)
        async for response in super().ServerReflectionInfo(request_iterator, context):
            yield response


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    """Channel arguments (grpc_types.h of gRPC core)."""
    return (
        ("grpc.max_receive_message_length", limits.most_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.most_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.most_header_bytes),
        # Two servers on one port would each get some of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", limits.most_connections),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MILLISECONDS),
    )


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """The port that it listens on. Raises ResourceError."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise ResourceError(f"gRPC cannot listen on {address}", "choose another --grpc-port") from error
    return bound


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Raises ArtifactError."""
    return grpc.ssl_server_credentials([(_pem(tls.key, b"PRIVATE KEY"), _pem(tls.certificate, b"CERTIFICATE"))])


def _pem(path: Path, kind: bytes) -> bytes:
    hint = "give files of a certificate and its key in PEM"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", hint) from None
    # gRPC itself says nothing until a client fails.
    if b"-----BEGIN " not in data or kind not in data:
        raise ArtifactError(f"{path} holds no {kind.decode().lower()} in PEM", hint)
    return data
