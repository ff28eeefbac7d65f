"""What a run says while it works: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engine.quality.headline import headline
from engine.running.work import Training
from engine.types import Batch
from engine.types.plural import counted

if TYPE_CHECKING:
    from engine.commands.output import Bar
    from engine.running.loop import Loop

log = logging.getLogger("headrace.progress")
SHOW_SECONDS = 0.5
LOG_SECONDS = 10.0
IDLE_SECONDS = 60.0
"""The seconds between two log lines about an idle source."""


class Progress:
    """A bar on a terminal; elsewhere a log line every ten seconds, and every minute while idle.
    Use as a context manager; `watch` and `look` are hooks for a loop and a survey."""

    def __init__(self) -> None:
        self._bar = _bar() if sys.stderr.isatty() else None
        self._every = SHOW_SECONDS if self._bar else LOG_SECONDS
        self._start = self._shown = time.monotonic()
        self._first: int | None = None
        self._rows = self._rows_shown = 0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def watch(self, loop: Loop, batch: Batch) -> None:
        """Show the progress of a run, at most twice a second. Called after every batch."""
        rows = loop.totals.read + loop.totals.added
        if self._due(rows, len(batch)):
            self._show(rows, loop.source.progress(loop.mark), _quality(loop))

    def look(self, batch: Batch, share: float | None) -> None:
        """Show the progress of a survey, with the share that is done. Called after every batch."""
        self._rows += batch.raw_rows
        if self._due(self._rows, batch.raw_rows):
            self._show(self._rows, share, [])

    def step(self, what: str, share: float | None) -> None:
        """Show what is done in words, and the share of it that is."""
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._put(what, share)

    def _due(self, rows: int, new: int) -> bool:
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = rows - new, now
        quiet = rows == self._rows_shown and not self._bar
        if now - self._shown < (IDLE_SECONDS if quiet else self._every):
            return False
        self._shown, self._rows_shown = now, rows
        return True

    def _show(self, rows: int, share: float | None, more: list[str]) -> None:
        seconds = self._shown - self._start
        rate = [f"{(rows - (self._first or 0)) / seconds:,.0f} rows/s"] if seconds > 0.05 else []
        self._put("  ".join([counted(rows, "row"), *rate, *more]), share)

    def _put(self, line: str, share: float | None) -> None:
        if self._bar:
            self._bar.put(line, share)
        else:
            done = "" if share is None else f"{share:.0%}  "
            log.info("%s%s", done, line)


def _bar() -> Bar:
    """The bar; what draws it loads for longer than all else that a run without a terminal says."""
    from engine.commands.output import Bar

    return Bar()


def _quality(loop: Loop) -> list[str]:
    work = loop.work
    if not isinstance(work, Training):
        return []
    quality = headline(work.evaluation.report())
    loss = [] if math.isnan(work.loss) else [f"loss {work.loss:.4g}"]  # nothing learned yet
    return [*loss, *([quality] if quality else [])]
