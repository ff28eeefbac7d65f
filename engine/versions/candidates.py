"""Versions that may take over: opened, compared with the one that serves, and tried."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil

from engine.errors import HeadraceError, first_line
from engine.types import Batch, Predictor, Schema
from engine.types.plural import counted
from engine.versions.priority import run_with_low_priority
from engine.versions.recent_rows import RecentRows
from engine.versions.store import Versions
from engine.versions.version import TornVersion, Version

log = logging.getLogger("headrace.versions")
ROUNDS = 5
"""How often a new version and the one that serves are timed in turn."""
TRIES = 4
"""How often that is done before a version is refused: a batch of one row takes microseconds, and a
busy machine doubles them now and then."""
MEMORY_FACTOR = 3
"""How many times its file a model takes while it is built."""
MAX_SHOWN = 120
"""The characters of an interface that a sentence shows."""

Open = Callable[[Path, int | None], Predictor]
"""Opens a model file with so many threads of its own; None for as many as it takes by itself.
Raises: HeadraceError."""


class RefusedVersion(Exception):
    """A version that cannot take over; says why, as a part of a sentence.

    Args:
        outcome: its label in ``headrace_model_swaps_total``.
    """

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedVersion:
    """A version, opened and bound."""

    version: Version
    predictor: Predictor


class Candidates:
    """Makes a version ready to take over.

    Args:
        versions: the folder.
        open: opens a model file.
        threads: of a model; None for as many as it takes by itself.
        max_slowdown: how many times as long as the one that serves a version may take.
        rows: to try it on.
    """

    def __init__(
        self,
        versions: Versions,
        open: Open,
        *,
        threads: int | None,
        max_slowdown: float,
        rows: RecentRows,
    ) -> None:
        self._versions = versions
        self._open = open
        self._threads = threads
        self._max_slowdown = max_slowdown
        self._rows = rows
        self.schema: Schema = {}

    def first(self) -> ServedVersion:
        """Return the version to begin with. Raises: UserError if there is none."""
        version = self._versions.current()
        predictor = self._open(self._versions.model(version.number), self._threads)
        return ServedVersion(version=version, predictor=predictor)

    def prepared(self, number: int, now: ServedVersion, *kept: ServedVersion) -> ServedVersion:
        """Return a version that may take over.

        Args:
            now: the version that serves.
            kept: others that are open.

        Raises: RefusedVersion.
        """
        result = _in_background(partial(self._tried, number, now, kept))
        if self._threads == 1 or any(result.predictor is one.predictor for one in (now, *kept)):
            return result
        # Its own threads would inherit the low priority: this session is made by another thread.
        predictor = self._opened(number, self._threads)
        self._warm_up(predictor)
        return replace(result, predictor=predictor)

    def compared(self, number: int, now: ServedVersion) -> ServedVersion:
        """Return a version that reads and answers the same as the one that serves, with one thread.

        Raises: RefusedVersion.
        """
        return _in_background(lambda: self._compared(self._verified(number), now))

    def _tried(
        self, number: int, now: ServedVersion, kept: tuple[ServedVersion, ...]
    ) -> ServedVersion:
        version = self._verified(number)
        for one in (now, *kept):
            if one.version.digest == version.digest:
                return replace(one, version=version)
        candidate = self._compared(version, now)
        self._warm_up(candidate.predictor)
        self._require_answers(candidate, now)
        self._require_speed(candidate, now)
        return candidate

    def _verified(self, number: int) -> Version:
        if not self._versions.path(number).is_dir():
            raise RefusedVersion("missing", f"there is no version {number}")
        try:
            return self._versions.verified(number)
        except TornVersion as error:
            raise RefusedVersion("torn", str(error)) from None

    def _compared(self, version: Version, now: ServedVersion) -> ServedVersion:
        _require_memory(version)
        candidate = ServedVersion(version=version, predictor=self._opened(version.number, 1))
        _require_same_interface(candidate, now)
        return candidate

    def _opened(self, number: int, threads: int | None) -> Predictor:
        try:
            predictor = self._open(self._versions.model(number), threads)
            predictor.bind(self.schema)
        except (HeadraceError, OSError, MemoryError) as error:
            reason = f"version {number} cannot be opened ({first_line(error)})"
            raise RefusedVersion("unreadable", reason) from None
        return predictor

    def _require_answers(self, candidate: ServedVersion, now: ServedVersion) -> None:
        """Check that it answers the rows that the current version answers."""
        batch = now.predictor.collate(self._rows.batch())  # both read the same feed
        current = now.predictor.apart()
        lost = len(current.predict(batch)) - len(candidate.predictor.predict(batch))
        if lost > 0:
            raise RefusedVersion(
                "non_finite",
                f"version {candidate.version.number} has no finite answer to {lost:,} of "
                f"{counted(len(batch), 'row')} that the one that serves answers",
            )

    def _require_speed(self, candidate: ServedVersion, now: ServedVersion) -> None:
        """Check that it is not slower than the current version, both with one thread."""
        current = now.predictor.apart() if self._threads == 1 else self._again(now, candidate)
        if current is None:
            return
        batch = now.predictor.collate(self._rows.batch(self._rows.sizes()[-1]))
        ours = theirs = math.inf
        for _ in range(TRIES):
            for _ in range(ROUNDS):
                ours = min(ours, _seconds(current, batch))
                theirs = min(theirs, _seconds(candidate.predictor, batch))
            if theirs <= self._max_slowdown * ours:
                return
        raise RefusedVersion(
            "slow",
            f"version {candidate.version.number} takes {theirs / ours:.1f} times as long as the "
            f"one that serves for {counted(len(batch), 'row')}, and [infer] max_slowdown is "
            f"{self._max_slowdown:g}",
        )

    def _again(self, now: ServedVersion, candidate: ServedVersion) -> Predictor | None:
        """Return the current version, opened once more with one thread; None if its file is not
        what it was when it was opened, which is no fault of the candidate."""
        number = now.version.number
        try:
            if self._verified(number).digest != now.version.digest:
                raise RefusedVersion("torn", f"version {number} is another model on disk by now")
            current = self._opened(number, 1)
        except RefusedVersion as reason:
            log.warning(
                "version %d is not timed beside version %d, which serves: %s.",
                candidate.version.number, number, reason,
            )  # fmt: skip
            return None
        self._warm_up(current)
        return current

    def _warm_up(self, predictor: Predictor) -> None:
        """Answer batches of all sizes that have come: the first of a size takes longer."""
        for size in self._rows.sizes():
            predictor.predict(self._rows.batch(size))


def _require_memory(version: Version) -> None:
    """Check that there is room for a second model. Raises: RefusedVersion."""
    needed, free = MEMORY_FACTOR * version.size, psutil.virtual_memory().available
    if needed > free:
        raise RefusedVersion(
            "too_large",
            f"version {version.number} takes about {needed:,} bytes of memory while it is built, "
            f"and {free:,} are free",
        )


def _require_same_interface(candidate: ServedVersion, now: ServedVersion) -> None:
    """Check that both read the same feed and answer the same columns. Raises: RefusedVersion."""
    ours, theirs = (
        {**one.predictor.interface(), "answers": one.predictor.answers} for one in (now, candidate)
    )
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise RefusedVersion(
                "other_schema",
                f"version {candidate.version.number} has other {name} "
                f"({_shown(theirs.get(name))}) than the one that serves "
                f"({_shown(ours.get(name))}): start the engine again to serve it",
            )


def _in_background(make: Callable[[], ServedVersion]) -> ServedVersion:
    """Return what is made in a thread of low priority. Raises: RefusedVersion."""
    made: list[ServedVersion | RefusedVersion] = []

    def run() -> None:
        try:
            made.append(make())
        except RefusedVersion as refusal:
            made.append(refusal)
        except Exception as error:  # noqa: BLE001 - whatever it is, the version before serves on
            made.append(RefusedVersion("unreadable", first_line(error)))

    run_with_low_priority(run)
    (result,) = made
    if isinstance(result, RefusedVersion):
        raise result
    return result


def _seconds(predictor: Predictor, batch: Batch) -> float:
    """Return the processor time of this thread for a batch."""
    start = time.thread_time()
    predictor.predict(batch)
    return time.thread_time() - start


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}: {_shown(inner)}" for name, inner in value.items())
    elif isinstance(value, tuple | list):
        value = ", ".join(map(str, value))
    text = str(value) or "none"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


__all__ = ["Candidates", "Open", "RefusedVersion", "ServedVersion"]
