"""Output on the terminal: a progress bar during a run, tables at the end."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from engine.errors import HeadraceError, ReaderLeft
from engine.quality import report
from engine.running.work import Training
from engine.types import Batch
from engine.types.plural import counted

if TYPE_CHECKING:
    from engine.artifacts import Summary
    from engine.running.loop import Loop

log = logging.getLogger("headrace.progress")
SHOW_SECONDS = 0.5
LOG_SECONDS = 10.0
IDLE_SECONDS = 60.0
"""The seconds between two log lines about an idle source."""


class Output(Console):
    """Standard output, whose reader may leave early (``| head``) and whose disk may be full."""

    def on_broken_pipe(self) -> None:
        """Leave the decision to the command; rich would end the process here."""
        _close()
        raise ReaderLeft

    def print(self, *parts: Any, **how: Any) -> None:
        """Print like `rich.console.Console.print`, but text as it is: "[labels]" is no markup.

        Raises: ReaderLeft; HeadraceError if nothing can be written.
        """
        how.setdefault("markup", not any(isinstance(part, str) for part in parts))
        with _printing():
            super().print(*parts, **how)


def put(text: str) -> None:
    """Write plain text to standard output. Raises: as `Output.print`."""
    with _printing():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except ReaderLeft:
        raise
    except BrokenPipeError:
        _close()
        raise ReaderLeft from None
    except OSError as error:
        _close()
        raise HeadraceError(
            f"Standard output cannot be written: {error.strerror}; what was done before is saved."
        ) from error


def _close() -> None:
    """Discard what is still to be written to standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """Return standard output, wide enough for the tables if it is not a terminal."""
    output = Output()
    return output if output.is_terminal else Output(width=120)


class Progress:
    """A bar on a terminal; elsewhere a log line every ten seconds, and every minute while idle.
    Use as a context manager; `watch` and `look` are hooks for a loop and a survey."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("headrace", total=None, text="")
        self._every = SHOW_SECONDS if self._console.is_terminal else LOG_SECONDS
        self._start = self._shown = time.monotonic()
        self._first: int | None = None
        self._rows = self._rows_shown = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        quiet = rows == self._rows_shown and not self._console.is_terminal
        if now - self._shown < (IDLE_SECONDS if quiet else self._every):
            return False
        self._shown, self._rows_shown = now, rows
        return True

    def _show(self, rows: int, share: float | None, more: list[str]) -> None:
        seconds = self._shown - self._start
        rate = [f"{(rows - (self._first or 0)) / seconds:,.0f} rows/s"] if seconds > 0.05 else []
        self._put("  ".join([counted(rows, "row"), *rate, *more]), share)

    def _put(self, line: str, share: float | None) -> None:
        if self._console.is_terminal:
            self._bar.update(
                self._task, total=None if share is None else 1.0, completed=share or 0.0, text=line
            )
        else:
            done = "" if share is None else f"{share:.0%}  "
            log.info("%s%s", done, line)


def _quality(loop: Loop) -> list[str]:
    work = loop.work
    if not isinstance(work, Training):
        return []
    headline = report.headline(work.evaluation.report())
    loss = [] if math.isnan(work.loss) else [f"loss {work.loss:.4g}"]  # nothing learned yet
    return [*loss, *([headline] if headline else [])]


def show(out: Console, parts: Iterable[Table | str]) -> None:
    """Print tables and sentences; a sentence is not markup and is never cut."""
    for part in parts:
        out.print(part, highlight=False, soft_wrap=isinstance(part, str))


def finish(summary: Summary) -> None:
    """Print the result of a run: the report, the gate's result, the account of all records, the
    files."""
    out = console()
    if summary.report:
        show(out, report.tables(summary.report))
    if summary.compression is not None:
        show(out, summary.compression.tables())
    show(out, [_account(summary), *summary.remarks])
    if summary.bottleneck is not None:
        show(out, [str(summary.bottleneck)])
    files = Table(show_header=False, box=None, pad_edge=False)
    for name, path in summary.files.items():
        files.add_row(name, str(path))
    out.print(files)


def _listed(counts: Mapping[tuple[str, str], int]) -> str:
    """Return what there is of each stage, by its name."""
    return ", ".join(f"{stage}: {name} {n:,}" for (stage, name), n in sorted(counts.items()) if n)


def _account(summary: Summary) -> str:
    totals = summary.totals
    outcomes = [
        f"{n:,} {outcome}"
        for outcome, n in (
            ("learned", totals.learned),
            ("predicted", totals.predicted),
            ("cleaned", totals.cleaned),
            ("rejected", totals.rejected),
            ("expired", totals.expired),
            ("matched labels", totals.matched),
            ("waiting", totals.waiting),
        )
        if n
    ]
    reasons, counts = _listed(totals.reasons), _listed(totals.counts)
    added = f" + {totals.added:,} added" if totals.added else ""
    sign = "=" if totals.balanced else "!="
    state = "stopped by a signal" if summary.stopped else "end of the source"
    lines = [
        f"{totals.read:,} read{added} {sign} {' + '.join(outcomes) or '0'}"
        f"{f'  ({reasons})' if reasons else ''}",
        *([f"counted by stages: {counts}"] if counts else []),
        f"{state} after {summary.seconds:.1f} s{', resumed' if summary.resumed else ''}",
    ]
    return "\n".join(lines)
