"""The versions of a model that are in memory: the one that serves, the one before, the next one."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from engine.observing.metrics import Metrics
from engine.versions.candidates import RefusedVersion, ServedVersion

log = logging.getLogger("headrace.versions")


class Succession:
    """Who serves, who has served before, and who is to serve from the next batch on.

    One thread makes a version `ready`, the one that predicts calls `swap`.

    Args:
        folder: of the versions, for the log.
        first: the version to begin with.

    Attributes:
        now: the version that serves.
        before: the one that served before it, kept so that a way back takes no time.
        ready: the one that the next batch brings; None if no other is.
        retired: what nobody needs any more, for the other thread to let go of.
        metrics: where swaps and refusals are counted.
    """

    def __init__(self, folder: Path, first: ServedVersion) -> None:
        self._folder = folder
        self.now = first
        self.before: ServedVersion | None = None
        self.ready: ServedVersion | None = None
        self.retired: list[ServedVersion] = []
        self.metrics = Metrics()

    @property
    def kept(self) -> tuple[ServedVersion, ...]:
        """The versions that are open and do not serve."""
        return () if self.before is None else (self.before,)

    def swap(self) -> None:
        """Take up the version that is ready. Called by the thread that predicts."""
        ready, self.ready = self.ready, None
        if ready is None:  # the pointer has come to one that is refused meanwhile
            return
        if ready.predictor is self.now.predictor:  # there and back, before a batch came
            self.now = ready
            return
        ready.predictor.take_state(self.now.predictor)
        self.retired.extend(self.kept)
        self.now, self.before = ready, self.now
        self.metrics.model_swaps.labels(outcome="swapped").inc()
        self.export()
        if (data_time := ready.version.data_time) is not None:
            self.metrics.model_freshness_seconds.observe(max(0.0, time.time() - data_time))
        log.info(
            "version %d serves: %s, in place of version %d", ready.version.number,
            ready.version.model_version, self.before.version.number,
        )  # fmt: skip

    def refuse(self, refusal: RefusedVersion) -> None:
        """Count and log a version that cannot take over."""
        self.metrics.model_swaps.labels(outcome=refusal.outcome).inc()
        log.warning(
            "%s is not swapped in: %s; version %d serves on.", self._folder, refusal,
            self.now.version.number,
        )  # fmt: skip

    def export(self) -> None:
        """Show on /metrics what serves."""
        self.metrics.model.clear()
        self.metrics.model.labels(**self.now.predictor.info()).set(1)
        data_time = self.now.version.data_time
        self.metrics.model_event_timestamp_seconds.set(
            float("nan") if data_time is None else data_time
        )


__all__ = ["Succession"]
