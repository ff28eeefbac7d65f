"""What the live page shows, as one JSON document: `Metrics.columns`, the health, and the facts that
no metric can hold (see `engine.running.notes`).

It is built when somebody asks, at most once per `FRESH_SECONDS`: ten pages cost what one does.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.observing.metrics import Metrics

log = logging.getLogger("headrace.service")

FRESH_SECONDS = 1.0
"""The seconds for which one document answers everybody."""

Facts = Callable[[bool], Mapping[str, Any]]
"""Returns what the page shows beside the metrics, as JSON types; with samples of rejected rows, or
without."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether something is well, and a line that says why."""

    ok: bool
    reason: str = "ok"


Check = Callable[[], Health]

Reader = Callable[[str], bool]
"""Returns whether whoever sends this Host may see values of rejected rows."""


def no_facts(_: bool) -> Mapping[str, Any]:
    """Return nothing beside the metrics."""
    return {}


def is_address(host: str) -> bool:
    """Return whether a Host is an address or localhost. A site whose name is made to lead to this
    machine (DNS rebinding) sends its name."""
    name = re.sub(r":\d+$", "", host)
    return name == "localhost" or _address(name.strip("[]")) is not None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class Status:
    """Builds the document, on the service's thread.

    Args:
        live, ready: the checks behind `/livez` and `/readyz`.
        may_see_rows: asked for each reader.
    """

    def __init__(
        self,
        metrics: Metrics,
        live: Check,
        ready: Check,
        facts: Facts,
        may_see_rows: Reader,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics
        self._checks = {"live": live, "ready": ready}
        self._facts = facts
        self._may_see_rows = may_see_rows
        self._clock = clock
        self._started = time.time()
        self._built: dict[bool, tuple[float, bytes]] = {}

    def health(self, name: str) -> Health:
        """Return the health of ``live`` or ``ready``; a check that raises is not well."""
        try:
            return self._checks[name]()
        except Exception as error:
            log.exception("health check failed")
            return Health(False, f"the check itself failed: {error!r}")

    def document(self, host: str) -> bytes:
        """Return the JSON document, at most `FRESH_SECONDS` old.

        Args:
            host: as the reader's request names it.
        """
        samples, now = self._may_see_rows(host), self._clock()
        built = self._built.get(samples)
        if built is None or now - built[0] >= FRESH_SECONDS:
            self._built[samples] = built = (now, self._build(samples))
        return built[1]

    def _build(self, samples: bool) -> bytes:
        document = {
            "at": time.time(),
            "started": self._started,
            **{name: asdict(self.health(name)) for name in self._checks},
            **self._facts(samples),
            "metrics": self.metrics.columns(),
        }
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


__all__ = [
    "FRESH_SECONDS",
    "Check",
    "Facts",
    "Health",
    "Reader",
    "Status",
    "is_address",
    "is_loopback",
    "no_facts",
]
