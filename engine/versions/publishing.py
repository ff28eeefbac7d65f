"""Publishes versions of a model while it learns.

1. The loop says when a checkpoint is safe. If a version is due, the checkpoint gets a second name,
   which keeps it from deletion; that is all the loop waits for.
2. A thread starts a child process of low priority with limits on time and memory. The child
   restores the checkpoint, exports, proves and compresses the model, and adds a version
   (`engine.publication`).
3. The pointer is moved last. A child that fails, crashes or is killed leaves it where it was; that
   is counted and logged, and the next version is tried when it is due.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import first_line
from engine.observing.metrics import Metrics
from engine.system import limited_process
from engine.system.limited_process import Limits
from engine.types.plural import counted
from engine.versions.pointers import Pointer
from engine.versions.registry import RegistryJob, register
from engine.versions.store import Versions
from engine.versions.version import TornVersion, Version

log = logging.getLogger("headrace.versions")
PUBLISH = "engine.publication:publish"
"""The function that the child calls."""
KEPT = "publishing"
"""The folder, in that of the checkpoints, with the checkpoint that is published."""
KEPT_NAME = "checkpoint-00000001.hrc"
MAX_SECONDS = 3_600.0
"""The most processor time of a child."""
MEMORY, MEMORY_FACTOR = 8 << 30, 16
"""The most bytes of a child: those, and so many times the checkpoint's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishJob:
    """What a child publishes.

    Attributes:
        table: of the pipeline, as it is in effect.
        file: the pipeline file, for sentences.
        module: a network that was given in place of [model] module, or None.
        checkpoints: the folder that holds the checkpoint, and no other.
        versions: the folder of versions.
        keep: how many versions stay.
        rows: learned so far.
        data_time: the newest time of a record, in seconds since the epoch; None if unknown.
        registry: where versions are registered; None for nowhere.
    """

    table: Mapping[str, Any]
    file: str
    module: Any = None
    checkpoints: str = ""
    versions: str
    keep: int
    rows: int = 0
    data_time: float | None = None
    registry: RegistryJob | None = None


def log_version(version: Version) -> None:
    """Log that a version is there, and why it does not serve."""
    log.info(
        "version %d published: %s", version.number, version.model_version,
        extra={"rows": version.rows, "bytes": version.size},
    )  # fmt: skip
    if version.kept_back:
        log.warning(
            "version %d is published and does not serve: %s; the one before serves on, and "
            "'headrace versions' can promote it.", version.number, version.kept_back,
        )  # fmt: skip


class Publisher:
    """Publishes a version when one is due, one at a time.

    Args:
        job: what to publish; checkpoint and rows are filled in.
        every: seconds between two versions; None for no such limit.
        every_rows: learned rows between two versions; None for no such limit.
        call: runs the child.
    """

    def __init__(
        self,
        job: PublishJob,
        metrics: Metrics,
        *,
        every: float | None = None,
        every_rows: int | None = None,
        call: Callable[..., Any] = limited_process.call,
    ) -> None:
        self._job = job
        self._metrics = metrics
        self._every = every
        self._every_rows = every_rows
        self._call = call
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun_at, self._rows = time.monotonic(), 0
        self._started_at, self._rows_before, self._rows_now = self._begun_at, 0, 0
        self._finished = self._held_logged = False
        """Whether a version was made in this run, or failed; whether a held pointer was told."""

    def begin(self, rows: int) -> None:
        """Start a run that has learned so many rows before."""
        self._begun_at, self._rows = time.monotonic(), rows
        self._started_at, self._rows_before, self._rows_now = self._begun_at, rows, rows

    def saved(self, checkpoint: Path, rows: int, data_time: float | None) -> None:
        """Publish a checkpoint that is safe, if a version is due and none is being made.

        Args:
            rows: learned so far.
            data_time: see `PublishJob`.
        """
        self._rows_now = rows
        if not self._is_due(rows) or self.is_busy:
            return
        self._begun_at, self._rows = time.monotonic(), rows
        try:
            kept = _kept(checkpoint)
        except OSError as error:
            self._failed(f"its checkpoint cannot be kept: {error.strerror or error}")
            return
        job = replace(self._job, checkpoints=str(kept), rows=rows, data_time=data_time)
        self._thread = threading.Thread(
            target=self._publish, args=(job,), name="headrace-publish", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop a version that is being made, and say why none was, if so. The pointer stays where
        it is."""
        told = self._closing.is_set()
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        learned, seconds = self._rows_now - self._rows_before, time.monotonic() - self._started_at
        if learned > 0 and not (told or self._finished):
            log.info(
                "no version was published while this run learned: %s", self._why(learned, seconds)
            )

    def _why(self, learned: int, seconds: float) -> str:
        """Return why a run of so many learned rows and seconds has published none."""
        rows_are_due = self._every_rows is not None and learned >= self._every_rows
        if rows_are_due or (self._every is not None and seconds >= self._every):
            return (
                "it ended before a version was made of one of its checkpoints; a shorter "
                "[checkpoint] interval makes them earlier"
            )
        limits = [] if self._every_rows is None else [f"every_rows = {self._every_rows:,}"]
        limits += [] if self._every is None else [f"every = {self._every:g} s"]
        return f"it learned {counted(learned, 'row')} in {seconds:.0f} s, and [export] has " + (
            " and ".join(limits)
        )

    def wait(self) -> None:
        """Wait for a version that is being made."""
        if self._thread is not None:
            self._thread.join()

    @property
    def is_busy(self) -> bool:
        """Whether a version is being made."""
        return self._thread is not None and self._thread.is_alive()

    def _is_due(self, rows: int) -> bool:
        if rows <= self._rows or self._closing.is_set():  # nothing new was learned
            return False
        if self._every is not None and time.monotonic() - self._begun_at >= self._every:
            return True
        return self._every_rows is not None and rows - self._rows >= self._every_rows

    def _publish(self, job: PublishJob) -> None:
        kept = Path(job.checkpoints)
        try:
            size = (kept / KEPT_NAME).stat().st_size
            limits = Limits(
                seconds=MAX_SECONDS, memory=MEMORY + MEMORY_FACTOR * size, allocations=False
            )
            version = self._call(PUBLISH, job, limits, stopped=self._closing.is_set)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
            Versions(Path(job.versions)).discard_unfinished()
            if not self._closing.is_set():
                self._failed(first_line(error))
            return
        finally:
            shutil.rmtree(kept, ignore_errors=True)
        self._published(version, job)

    def _published(self, version: Version, job: PublishJob) -> None:
        self._finished = True
        outcome = "kept_back" if version.kept_back else "published"
        self._metrics.model_versions.labels(outcome=outcome).inc()
        log_version(version)
        with suppress(TornVersion):
            pointer = Versions(Path(job.versions)).pointer.read()
            self._log_held(pointer, job)
        if job.registry is not None:
            register(job.registry, self._metrics, call=self._call, stopped=self._closing.is_set)

    def _log_held(self, pointer: Pointer | None, job: PublishJob) -> None:
        held = pointer is not None and pointer.held
        if held and pointer is not None and not self._held_logged:
            log.warning(
                "version %d serves, held by hand: newer ones are published and do not serve; "
                "'headrace versions %s --promote' lets the newest serve again.",
                pointer.number, job.file,
            )  # fmt: skip
        self._held_logged = held

    def _failed(self, reason: str) -> None:
        self._finished = True
        self._metrics.model_versions.labels(outcome="failed").inc()
        log.warning("no version is published (%s); the one before serves on", reason)


def _kept(checkpoint: Path) -> Path:
    """Give a checkpoint a second name, so that it stays when the run deletes it; return the folder
    of that name. Raises: OSError."""
    folder = checkpoint.parent / KEPT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        os.link(checkpoint, folder / KEPT_NAME)
    except OSError:  # a file system without links
        shutil.copy2(checkpoint, folder / KEPT_NAME)
    return folder


__all__ = ["PUBLISH", "PublishJob", "Publisher", "log_version"]
