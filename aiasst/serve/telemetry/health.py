"""GET /health/live and /health/ready for whoever restarts and routes. Tells no name, no path and no figure: anyone may ask."""

from __future__ import annotations

from fastapi import APIRouter, Response

from aiasst.serve.service import Service

_UNSTORED = {"Cache-Control": "no-store"}


def router(service: Service) -> APIRouter:
    """The two questions of Kubernetes and load balancers.

    live: the event loop answers; a service that does not is to be restarted. ready: a request would be served now, or after a
    model was loaded; while that is not so (503) requests go elsewhere, and nothing is to be restarted.
    """
    routes = APIRouter(prefix="/health", tags=["health"])

    @routes.get("/live", summary="Whether the service runs")
    async def live(response: Response) -> dict[str, str]:
        """The event loop answers."""
        response.headers.update(_UNSTORED)
        return {"status": "live"}

    @routes.get("/ready", summary="Whether a request would be served", responses={503: {"description": "Not now."}})
    async def ready(response: Response) -> dict[str, str]:
        """Served now, or after a model was loaded."""
        response.headers.update(_UNSTORED)
        if service.accepting and service.ready:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "unready", "reason": "model unavailable" if service.accepting else "stopping"}

    return routes
