"""The HTTP service: the live page, metrics, liveness and readiness of a run.

It runs on a thread of its own, so a slow reader costs the loop nothing; and it is not what is
watched: `/livez` answers for the loop's progress, as a `Heartbeat` saw it, not for the web thread.

`engine.observing.web_server` answers; only an engine that has a page imports it.

Leaves out: TLS and passwords. It listens on this machine alone unless `host` is set; a proxy in
front of it has both.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import Field

from engine import types
from engine.observing.metrics import Metrics
from engine.observing.status import (
    Check,
    Facts,
    Health,
    Status,
    is_address,
    is_loopback,
    no_facts,
)
from engine.types import Duration, HeadraceError, UserError

if TYPE_CHECKING:
    from engine.observing.web_server import Server

log = logging.getLogger("headrace.service")

START_SECONDS = 10.0
"""The most seconds until the thread answers."""
WATCH_SECONDS = 5.0
"""The most seconds between two checks of a watched heartbeat."""
STACK_DEPTH = 6
"""The stack frames logged for a thread that stalls."""
BACKLOG = 32
"""Connections that the kernel queues, accepted in one go."""
STOP_SECONDS = 5.0
"""The most seconds `Service.stop` waits for the thread."""


class Heartbeat:
    """The time of the loop's last progress. It beats after every batch and while the source has
    nothing; a source that does not answer stops it."""

    def __init__(
        self,
        stall_timeout: float = 60.0,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            stall_timeout: the age of the last beat from which the loop counts as stalled.
            metrics: where to show that age, as ``headrace_loop_stall_seconds``.
        """
        self._limit = stall_timeout
        self._clock = clock
        self._last = clock()
        self._pauses = 0
        if metrics is not None:
            metrics.watch(metrics.loop_stall_seconds, self.age)

    def beat(self, at: float | None = None) -> None:
        """Note progress, now or `at` a time of the clock. Any thread; costs nothing."""
        self._last = self._clock() if at is None else at

    def rest(self) -> None:
        """Stop counting: the loop has ended, and what follows (export, compression) has limits of
        its own."""
        self._last = math.inf

    def pause(self) -> None:
        """Stop counting until `resume`: what the loop waits for takes its time. Pauses nest, and
        only one thread at a time may pause."""
        self._pauses += 1

    def resume(self) -> None:
        """End a pause, which counts as progress."""
        self._last = max(self._last, self._clock())
        self._pauses -= 1

    def age(self) -> float:
        """Return the seconds since the last beat (before the first one, since the start); 0 in a
        pause."""
        return 0.0 if self._pauses else max(0.0, self._clock() - self._last)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Log when this thread stalls, where it is then, and when it continues, while the block
        runs."""
        done, thread = threading.Event(), threading.get_ident()
        watch = threading.Thread(
            target=self._watch, args=(done, thread), name="headrace-heartbeat", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def _watch(self, done: threading.Event, thread: int) -> None:
        stalled = False
        while not done.wait(min(WATCH_SECONDS, self._limit / 4)):
            health = self.health()
            if health.ok == (not stalled):
                continue
            stalled = not health.ok
            if stalled:
                log.warning("stalled: %s", health.reason, extra={"at": _place(thread)})
            else:
                log.warning("goes on after a stall")

    def health(self) -> Health:
        """Return alive, or stalled for how long."""
        age = self.age()
        if age < self._limit:
            return Health(True)
        return Health(False, f"no progress for {age:.1f} s; {self._limit:g} s are allowed")


def _place(thread: int) -> str:
    """Return the stack of a thread, the innermost call first."""
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[:-STACK_DEPTH:-1] if frame is not None else []
    return " < ".join(f"{c.name} ({Path(c.filename).name}:{c.lineno})" for c in calls)


class Service:
    """Serves ``/metrics``, ``/livez``, ``/readyz``, and ``/``: a live page that reads
    ``/status.json``.

    Contract: `start` returns when the page answers, or raises; `stop` leaves no thread and no
    socket behind, whatever readers do; both may be called when there is nothing to do. No signal
    handler is touched.
    """

    class Settings(types.Settings):
        """``[service]``

        Attributes:
            enabled: whether there is a page at all.
            host: address to listen on; "0.0.0.0" is every network this machine is in.
            port: TCP port; 0 takes any free one, the log says which.
            stall_timeout: time without progress of the loop after which `/livez` says 503.
            samples: whether the page shows a few rejected rows with their values. Unless given,
                only if `host` is this machine itself and no other table is `private`.
        """

        enabled: bool = True
        host: str = "127.0.0.1"
        port: int = Field(9108, ge=0, le=65535)
        stall_timeout: Duration = Field(60.0, gt=0)
        samples: bool | None = None

        def may_see_rows(self, host: str) -> bool:
            """Return whether a reader who sends this Host may see samples."""
            if self.samples is not None:
                return self.samples
            return is_loopback(self.host) and is_address(host)

    def __init__(
        self,
        metrics: Metrics,
        settings: Settings | None = None,
        live: Check = lambda: Health(True),
        ready: Check = lambda: Health(True),
        facts: Facts = no_facts,
    ) -> None:
        """
        Args:
            live: asked for `/livez`, on the service's thread; a heartbeat's `health`.
            ready: asked for `/readyz`.
            facts: asked for what the page shows beside the metrics.
        """
        self._settings = settings or self.Settings()
        self._status = Status(metrics, live, ready, facts, self._settings.may_see_rows)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._address = ("", 0)

    @property
    def running(self) -> bool:
        """Whether the page answers."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def port(self) -> int:
        """The port it listens on, also if the settings say 0."""
        return self._address[1]

    @property
    def url(self) -> str:
        """The address of the index, like ``http://127.0.0.1:9108``."""
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def probe(self) -> None:
        """Raises: UserError when the address cannot be had now."""
        if self._settings.enabled:
            _listen(self._settings.host, self._settings.port).close()

    def start(self) -> None:
        """Listen, and return when the page answers.

        Raises: UserError when the address cannot be had (a port in use); HeadraceError when the
            server does not come up.
        """
        if not self._settings.enabled or self.running:
            return
        # Here and not on the thread, so that the caller reports a mistake before a run begins.
        sock = _listen(self._settings.host, self._settings.port)
        self._address = sock.getsockname()[:2]
        from engine.observing.web_server import Server, answers  # only where there is a page

        self._server = server = Server(answers(self._status))
        self._thread = threading.Thread(
            target=server.serve_on, args=(sock,), name="headrace-service", daemon=True
        )
        self._thread.start()
        if not server.up.wait(START_SECONDS) or not server.started:
            self.stop()
            sock.close()
            raise HeadraceError(f"The service on {self.url} did not start; the log says why.")
        log.info("service listens", extra={"url": self.url})

    def stop(self) -> None:
        """Stop listening; return within `STOP_SECONDS`."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            log.error("the service's thread does not end", extra={"url": self.url})
        self._server = self._thread = None

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise UserError(_refusal(host, port, error)) from error


def _refusal(host: str, port: int, error: OSError | UnicodeError) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use by another program: choose another with "
            "`[service] port = ...` in the pipeline file or `--set service.port=...`, or 0 for any "
            "free one."
        )
    if code in (errno.EACCES, errno.EPERM):
        return (
            f"Port {port} on {host} is not allowed to this user: choose one above 1023 with "
            "`[service] port = ...` or `--set service.port=...`."
        )
    return (
        f"The service cannot listen on '{host}', port {port} ({error}): choose an address of this "
        'machine with `[service] host = ...`, for example "127.0.0.1".'
    )
