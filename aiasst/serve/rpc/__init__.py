"""gRPC: the same requests as over REST and WebSocket, in the messages of `aiasst.proto`, with health and reflection.

server.py     listens, and stops
servicer.py   the calls
messages.py   messages of the interface ↔ forms of the service
statuses.py   refusals → status codes, metadata → who asks
health.py     grpc.health.v1
aiasst.proto  the interface; `make proto` writes aiasst_pb2*.py from it, *_grpc.py for clients
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiasst.errors import MissingExtraError
from aiasst.serve.service import Service
from aiasst.serve.settings import ServeSettings
from aiasst.serve.watch import Unwatched, Watch

if TYPE_CHECKING:
    from aiasst.serve.rpc.server import RpcServer
    from aiasst.serve.rpc.statuses import Authorize

_PACKAGES = {
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "google": "protobuf",
}


async def start(
    settings: ServeSettings,
    service: Service,
    authorize: Authorize,
    watch: Watch = Unwatched(),  # noqa: B008 - has no state
) -> RpcServer:
    """Listen on the host and gRPC port of `settings` (0: any free one) and ask `service`, on this event loop.

    Args:
        settings: with a `grpc_port`.
        service: asked on this event loop.
        authorize: gives who asks from the metadata "authorization" and the peer's address, or raises a Refusal.
        watch: told of refusals that do not reach the service.

    Raises:
        MissingExtraError: the packages of gRPC are not installed.
        ResourceError: the port is taken, or may not be used.
        ArtifactError: a file of the certificate cannot be used.
    """
    try:
        from aiasst.serve.rpc.server import RpcServer
    except ModuleNotFoundError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise MissingExtraError(package, "serve") from None
    return await RpcServer.start(settings, service, authorize, watch)
