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

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.observing.metrics import Metrics
from engine.types import Batch, Features, Predictor, Schema, Snapshot, UserError
from engine.versions.canary import Canary
from engine.versions.candidates import Candidates, Open
from engine.versions.following import VersionFollower
from engine.versions.recent_rows import RecentRows
from engine.versions.shadow import Shadow
from engine.versions.store import Versions
from engine.versions.succession import Succession
from engine.versions.version import Version


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

    Attributes:
        succession: the versions in memory: the one that serves, and those beside it in time.

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
        self._poll = poll
        self._rows = RecentRows()
        self._candidates = Candidates(
            versions, open, threads=threads, max_slowdown=max_slowdown, rows=self._rows
        )
        self.succession = Succession(versions.folder, self._candidates.first())
        self._shadow = Shadow(shadow) if shadow else None
        self._canary = canary
        self._follower = VersionFollower(
            versions,
            self._candidates,
            self._rows,
            self.succession,
            shadow=self._shadow,
            canary=canary,
        )
        self._names: tuple[str, ...] = ()
        predictor = self.succession.now.predictor
        self.stages, self.before = predictor.stages, predictor.before
        self.before_settings = predictor.before_settings
        self.columns, self.parse_settings = predictor.columns, predictor.parse_settings
        self.target = predictor.target

    # ---------------------------------------------------------------------------------- predictor

    @property
    def answers(self) -> Schema:
        return self.succession.now.predictor.answers

    @property
    def version(self) -> Version:
        """The version that serves."""
        return self.succession.now.version

    @property
    def pending(self) -> Version | None:
        """The version that the next batch brings; None if no other is ready."""
        ready = self.succession.ready
        return None if ready is None else ready.version

    def columns_read(self, schema: Schema) -> Sequence[str]:
        return self.succession.now.predictor.columns_read(schema)

    def info(self) -> dict[str, str]:
        return self.succession.now.predictor.info()

    def interface(self) -> Mapping[str, Any]:
        return self.succession.now.predictor.interface()

    def bind(self, schema: Schema) -> None:
        self.succession.now.predictor.bind(schema)
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
        return self.succession.now.predictor.collate(batch)

    @property
    def judged(self) -> Features | None:
        return self.succession.now.predictor.judged

    def scores(self, frame: pl.DataFrame) -> NDArray[np.floating[Any]]:
        return self.succession.now.predictor.scores(frame)

    @property
    def carries_state(self) -> bool:
        return self.succession.now.predictor.carries_state

    def snapshot(self) -> Snapshot:
        return self.succession.now.predictor.snapshot()

    def restore(self, value: Snapshot) -> None:
        self.succession.now.predictor.restore(value)

    def memory(self) -> Mapping[str, int]:
        return self.succession.now.predictor.memory()

    def predict(self, batch: Batch) -> Batch:
        """Predict with the current version: the place between two batches where it changes."""
        succession = self.succession
        if succession.ready is not None:
            succession.swap()
        self._rows.note(batch)
        done = succession.now.predictor.predict(batch)
        if self._shadow is not None:
            self._shadow.offer(done.frame, self._names)
        if self._canary is not None:
            done = self._canary.answer(batch, done, self._names, succession.metrics)
        return done

    # ---------------------------------------------------------------------------------- following

    @contextmanager
    def watched(self, metrics: Metrics) -> Iterator[None]:
        """Follow the pointers while the block runs."""
        self.succession.metrics = metrics
        self.succession.export()
        done = threading.Event()
        jobs = [partial(self._follower.follow, done, self._poll)]
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
        next batch is predicted with it."""
        self._follower.look()


__all__ = ["SwappingPredictor"]
