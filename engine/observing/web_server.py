"""The web server behind `engine.observing.service`: nothing else knows starlette and uvicorn.

Readers cannot harm it: a connection is one request and has `CONNECTION_SECONDS` for it, and where
there are too many, the one that has waited longest without asking goes. So neither idle connections
nor slow ones take the descriptors that sources and sinks need, and a scrape still gets in.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from engine.observing.service import BACKLOG
from engine.observing.status import Health, Status

log = logging.getLogger("headrace.service")

GRACE_SECONDS = 1
"""The most seconds that a client in the middle of a page may delay the end."""
CONNECTION_SECONDS = 10.0
"""The seconds from a connection's first byte to its last."""
MAX_CONNECTIONS = 64
"""The most connections at a time; fewer if the process may have few descriptors, see `_room`."""

_PRIVATE = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of the page and of what it shows: for this site's readers alone."""


# The handlers are coroutines although they await nothing: a plain function would run on a pool
# of further threads.


def answers(status: Status) -> Starlette:
    """Return the web application."""

    async def page(_: Request) -> Response:
        from engine.pages.live import live_page  # and jinja2 with it, only where it is opened

        text, policy = live_page()
        return HTMLResponse(text, headers={"content-security-policy": policy, **_PRIVATE})

    async def document(request: Request) -> Response:
        text = status.document(request.headers.get("host", ""))
        return Response(text, headers=_PRIVATE, media_type="application/json")

    async def exposition(_: Request) -> Response:
        text, content_type = status.metrics.exposition()
        return Response(text, headers={"content-type": content_type})

    async def livez(_: Request) -> Response:
        return _answer(status.health("live"))

    async def readyz(_: Request) -> Response:
        return _answer(status.health("ready"))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/status.json", document),
            Route("/metrics", exposition),
            Route("/livez", livez),
            Route("/readyz", readyz),
        ]
    )


class _Readers(ServerState):
    """The open connections, bounded in number."""

    def __init__(self) -> None:
        super().__init__()
        self._room = _room()
        self._crowded = False

    def make_room(self) -> None:
        """Make room for a new connection: above the limit, close the least valuable one."""
        open_connections = [
            c for c in self.connections if isinstance(c, _Connection) and not c.gone
        ]
        if len(open_connections) <= self._room:
            return
        if not self._crowded:
            self._crowded = True
            log.warning(
                "too many connections to the service: idle ones are closed, the oldest first",
                extra={"limit": self._room},
            )
        min(open_connections, key=lambda c: (c.cycle is not None, c.since)).abort()


class _Connection(H11Protocol):
    """Serves one request within `CONNECTION_SECONDS`, whatever its client does."""

    server_state: _Readers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self.gone = False
        self._deadline = self.loop.call_later(CONNECTION_SECONDS, self.abort)
        self.server_state.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection now, whatever is still to be sent."""
        self.gone = True
        self.transport.abort()


class Server(uvicorn.Server):
    """A server that reports when it is up, and what ended its thread."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_Connection,
                backlog=BACKLOG,
                headers=[("connection", "close")],
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2 * GRACE_SECONDS,
            )
        )
        self.server_state = _Readers()
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A reader that takes its time holds up the end a little, and is no error.
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._abort)
        await super().shutdown(sockets)

    def _abort(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def serve_on(self, sock: socket.socket) -> None:
        """Run the thread."""
        try:
            self.run([sock])
        except BaseException:
            log.exception("service failed")
        finally:
            self.up.set()
            sock.close()


def _room() -> int:
    """Return the most connections at a time: a small part of the process's descriptors."""
    return min(MAX_CONNECTIONS, max(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))


def _answer(health: Health) -> Response:
    return PlainTextResponse(
        " ".join(health.reason.split()) + "\n",
        status_code=200 if health.ok else 503,
        headers={"cache-control": "no-store"},
    )


__all__ = ["CONNECTION_SECONDS", "MAX_CONNECTIONS", "Server", "answers"]
