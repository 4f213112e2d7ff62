"""/metrics, /livez and /readyz."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from outbox.daemon.health import Health


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the daemon: uvicorn would take them, and end before what is in flight has."""
        yield


def make_server(listen: str, health: Health) -> uvicorn.Server:
    """Return the server for ``host:port``; ``serve()`` runs it until its ``should_exit`` is set."""
    host, _, port = listen.rpartition(":")

    def answer(reasons: list[str]) -> Response:
        return PlainTextResponse("\n".join(reasons or ["ok"]) + "\n", status_code=503 if reasons else 200)

    async def livez(_: Request) -> Response:
        return answer(health.why_not_live())

    async def readyz(_: Request) -> Response:
        return answer(health.why_not_ready())

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])
    config = uvicorn.Config(
        app, host=host.strip("[]"), port=int(port), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    return _Server(config)
