"""Output on the terminal: the bar while something is done, tables at the end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from engine.errors import HeadraceError, ReaderLeft
from engine.quality import report
from engine.running.written_rows import SINK

if TYPE_CHECKING:
    from engine.artifacts import Summary


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


class Bar:
    """A progress bar on the terminal of standard error, removed when it stops."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("headrace", total=None, text="")
        self.start, self.stop = self._bar.start, self._bar.stop

    def put(self, line: str, share: float | None) -> None:
        """Show a line beside the share that is done; None: not known."""
        self._bar.update(
            self._task, total=None if share is None else 1.0, completed=share or 0.0, text=line
        )


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
    kept_out = {what: n for what, n in totals.counts.items() if what[0] == SINK}
    reasons, why = _listed(totals.reasons), _listed(kept_out)
    counts = _listed({what: n for what, n in totals.counts.items() if what not in kept_out})
    added = f" + {totals.added:,} added" if totals.added else ""
    sign = "=" if totals.balanced else "!="
    state = "stopped by a signal" if summary.stopped else "end of the source"
    lines = [
        f"{totals.read:,} read{added} {sign} {' + '.join(outcomes) or '0'}"
        f"{f'  ({reasons})' if reasons else ''}",
        *([f"{sum(kept_out.values()):,} of them not in the output  ({why})"] if why else []),
        *([f"counted by stages: {counts}"] if counts else []),
        f"{state} after {summary.seconds:.1f} s{', resumed' if summary.resumed else ''}",
    ]
    return "\n".join(lines)
