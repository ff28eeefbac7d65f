"""Serves the version that a pointer names, and swaps in the next one while it serves.

1. A thread looks at the pointer. A version that it comes to is verified by its digest.
2. The new model is built beside the one that serves, by a thread of low priority, with one thread
   of its own. It must read and answer the same columns.
3. It answers a copy of rows that came lately, in batches as large as those that come: that warms it
   up, and shows whether its answers are finite and how long they take.
4. The thread that predicts takes it up between two batches. Each row carries the version that has
   answered it.
5. A version that is refused is counted and logged once, and the one before serves on. The model
   that was replaced is kept, so that a way back takes no time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import first_line
from engine.observing.metrics import Metrics
from engine.types import Batch, Features, Predictor, Schema, Snapshot, UserError
from engine.versions.canary import Canary
from engine.versions.candidates import Candidates, Open, RefusedVersion, ServedVersion
from engine.versions.recent_rows import RecentRows
from engine.versions.shadow import Shadow
from engine.versions.store import TornVersion, Version, Versions

log = logging.getLogger("headrace.versions")


class SwappingPredictor(Predictor):
    """Predicts with the current version of a folder.

    Args:
        versions: the folder.
        open: opens a model file.
        poll: seconds between two looks at the pointer.
        threads: of a model; None for as many as it takes by itself.
        max_slowdown: how many times as long as the one before a version may take.
        shadow: the share of the rows (0-1) that the version in the shadow answers too.
        canary: answers some keys by the version in the shadow; None answers none.

    Raises: UserError if there is no version to begin with.
    """

    def __init__(
        self,
        versions: Versions,
        open: Open,
        *,
        poll: float,
        threads: int | None,
        max_slowdown: float,
        shadow: float = 0.0,
        canary: Canary | None = None,
    ) -> None:
        self.versions = versions
        self._poll = poll
        self._rows = RecentRows()
        self._candidates = Candidates(
            versions, open, threads=threads, max_slowdown=max_slowdown, rows=self._rows
        )
        self._now = self._candidates.first()
        self._before: ServedVersion | None = None
        self._ready: ServedVersion | None = None
        self._retired: list[ServedVersion] = []
        self._seen = self._key(self._now.version.number)
        self._shadow = Shadow(shadow) if shadow else None
        self._canary = canary
        self._shadow_seen: tuple[object, ...] = ()
        self._pointer_failed = ""
        self._names: tuple[str, ...] = ()
        self._metrics = Metrics()
        predictor = self._now.predictor
        self.stages, self.before = predictor.stages, predictor.before
        self.before_settings = predictor.before_settings
        self.columns, self.parse_settings = predictor.columns, predictor.parse_settings
        self.target = predictor.target

    # ---------------------------------------------------------------------------------- predictor

    @property
    def answers(self) -> Schema:
        return self._now.predictor.answers

    @property
    def version(self) -> Version:
        """The version that serves."""
        return self._now.version

    @property
    def pending(self) -> Version | None:
        """The version that the next batch brings; None if no other is ready."""
        ready = self._ready
        return None if ready is None else ready.version

    def columns_read(self, schema: Schema) -> Sequence[str]:
        return self._now.predictor.columns_read(schema)

    def info(self) -> dict[str, str]:
        return self._now.predictor.info()

    def interface(self) -> Mapping[str, Any]:
        return self._now.predictor.interface()

    def bind(self, schema: Schema) -> None:
        self._now.predictor.bind(schema)
        self._candidates.schema = schema
        self._names = tuple(self.answers)
        if self.carries_state and (self._shadow is not None or self._canary is not None):
            raise UserError(
                "[infer] shadow and canary show some rows to another version, and this model needs "
                "all rows of a key: take them out."
            )
        if self._canary is not None:
            self._canary.bind(schema)

    def collate(self, batch: Batch) -> Batch:
        """Return the batch with its feed, which is the same for every version that may serve."""
        return self._now.predictor.collate(batch)

    @property
    def judged(self) -> Features | None:
        return self._now.predictor.judged

    def scores(self, frame: pl.DataFrame) -> NDArray[np.floating[Any]]:
        return self._now.predictor.scores(frame)

    @property
    def carries_state(self) -> bool:
        return self._now.predictor.carries_state

    def snapshot(self) -> Snapshot:
        return self._now.predictor.snapshot()

    def restore(self, value: Snapshot) -> None:
        self._now.predictor.restore(value)

    def memory(self) -> Mapping[str, int]:
        return self._now.predictor.memory()

    def predict(self, batch: Batch) -> Batch:
        """Predict with the current version: the place between two batches where it changes."""
        if self._ready is not None:
            self._swap()
        self._rows.note(batch)
        done = self._now.predictor.predict(batch)
        if self._shadow is not None:
            self._shadow.offer(done.frame, self._names)
        if self._canary is not None:
            done = self._canary.answer(batch, done, self._names, self._metrics)
        return done

    # ---------------------------------------------------------------------------------- following

    @contextmanager
    def watched(self, metrics: Metrics) -> Iterator[None]:
        """Follow the pointers while the block runs."""
        self._metrics = metrics
        self._export()
        done = threading.Event()
        jobs: list[Callable[[], None]] = [partial(self._watch, done)]
        if self._shadow is not None:
            jobs.append(partial(self._shadow.follow, done, metrics))
        threads = [
            threading.Thread(target=job, name="headrace-versions", daemon=True) for job in jobs
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def look(self) -> None:
        """Look at the pointers once. If one names another version than before, prepare that; the
        next batch is predicted with it. A version is refused once, until its files or the pointer
        change."""
        self._retired.clear()  # here, as the end of a session takes a while
        self._look_at_pointer()
        if self._shadow is not None or self._canary is not None:
            self._look_at_shadow()

    def _look_at_pointer(self) -> None:
        try:
            pointer = self.versions.pointer()
            if pointer is None:
                raise TornVersion(self.versions.no_pointer())
        except TornVersion as error:
            if self._pointer_failed != str(error):
                self._refuse(RefusedVersion("missing", str(error)))
            self._pointer_failed = str(error)
            return
        self._pointer_failed = ""
        if self._key(pointer.number) == self._seen:
            return
        kept = () if self._before is None else (self._before,)
        numbers = [one.version.number for one in (self._now, *kept)]
        if not self._rows.are_there and pointer.number not in numbers:
            return  # nobody waits for it, and it cannot be tried
        self._seen = self._key(pointer.number)
        try:
            self._ready = self._candidates.prepared(pointer.number, self._now, *kept)
        except RefusedVersion as refusal:
            self._ready = None
            self._refuse(refusal)

    def _look_at_shadow(self) -> None:
        try:
            number = self.versions.shadow()
        except TornVersion:
            number = None
        key = () if number is None else self._key(number)
        if key == self._shadow_seen or not self._rows.are_there:
            return
        self._shadow_seen = key
        self._put_beside(None)
        if number is None:
            log.info("no version is in the shadow any more")
            return
        make: Callable[[int, ServedVersion], ServedVersion] = self._candidates.compared
        if self._canary is not None:
            make = self._candidates.prepared
        try:
            self._put_beside(make(number, self._now).predictor)
        except RefusedVersion as refusal:
            self._refuse(refusal)
        else:
            log.info("version %d is in the shadow", number)

    def _put_beside(self, predictor: Predictor | None) -> None:
        for beside in (self._shadow, self._canary):
            if beside is not None:
                beside.predictor = predictor

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(self._poll):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, this version serves on
                self._refuse(RefusedVersion("unreadable", first_line(error)))

    def _swap(self) -> None:
        """Take up the version that is ready. Called by the thread that predicts."""
        ready, self._ready = self._ready, None
        if ready is None:  # the pointer has come to one that is refused meanwhile
            return
        if ready.predictor is self._now.predictor:  # there and back, before a batch came
            self._now = ready
            return
        ready.predictor.take_state(self._now.predictor)
        self._retired.extend([] if self._before is None else [self._before])
        self._now, self._before = ready, self._now
        self._metrics.model_swaps.labels(outcome="swapped").inc()
        self._export()
        if (data_time := ready.version.data_time) is not None:
            self._metrics.model_freshness_seconds.observe(max(0.0, time.time() - data_time))
        log.info(
            "version %d serves: %s, in place of version %d", ready.version.number,
            ready.version.model_version, self._before.version.number,
        )  # fmt: skip

    def _export(self) -> None:
        """Show on /metrics what serves."""
        self._metrics.model.clear()
        self._metrics.model.labels(**self.info()).set(1)
        data_time = self.version.data_time
        self._metrics.model_event_timestamp_seconds.set(
            float("nan") if data_time is None else data_time
        )

    def _refuse(self, refusal: RefusedVersion) -> None:
        self._metrics.model_swaps.labels(outcome=refusal.outcome).inc()
        log.warning(
            "%s is not swapped in: %s; version %d serves on.", self.versions.folder, refusal,
            self.version.number,
        )  # fmt: skip

    def _key(self, number: int) -> tuple[object, ...]:
        return (number, *self.versions.signature(number))


__all__ = ["SwappingPredictor"]
