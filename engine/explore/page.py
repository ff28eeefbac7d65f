"""Findings as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from engine import pages
from engine.explore.findings import ColumnProfile, Findings, Timeline
from engine.pages import WIDTH, percent, svg
from engine.types.plural import short_number

HEIGHT = 64.0
STRIP = 44.0


def write(findings: Findings, path: Path) -> None:
    """Write the page. Raises: HeadraceError if it cannot be written."""
    pages.write(page(findings), path)


def page(findings: Findings) -> str:
    """Return the HTML."""
    return pages.template("engine.explore").render(
        found=findings,
        histogram=histogram,
        timeline=timeline,
        calendar=calendar,
        heat=heat,
        number=short_number,
        percent=percent,
    )


def histogram(column: ColumnProfile) -> Markup:
    """Return a histogram of bars."""
    most = max(column.bars, default=0.0) or 1.0
    wide = WIDTH / max(1, len(column.bars))
    drawn = [
        f'<rect x="{i * wide:.2f}" y="{HEIGHT - bar / most * HEIGHT:.2f}" '
        f'width="{max(wide - 1, 1):.2f}" height="{bar / most * HEIGHT:.2f}"/>'
        for i, bar in enumerate(column.bars)
    ]
    return svg("bars", HEIGHT, drawn)


def timeline(line: Timeline) -> Markup:
    """Return the median and the band between the quantiles 0.1 and 0.9 over the stream, with
    missing values as a strip below."""
    known = [x for x in (*line.low, *line.high) if x is not None]
    n = len(line.median)
    if not known or n < 2:
        return Markup("")
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    wide = WIDTH / n

    def at(i: int, x: float) -> str:
        return f"{(i + 0.5) * wide:.1f},{STRIP - (x - low) / span * STRIP:.1f}"

    drawn = []
    for run in _runs(line):
        upper = [at(i, line.high[i] or 0.0) for i in run]
        lower = [at(i, line.low[i] or 0.0) for i in reversed(run)]
        drawn.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
        middle = " ".join(at(i, line.median[i] or 0.0) for i in run)
        drawn.append(f'<polyline points="{middle}"/>')
    drawn += [
        f'<rect class="gap" x="{i * wide:.2f}" y="{STRIP + 3:.1f}" width="{wide:.2f}" height="5" '
        f'opacity="{max(0.15, share):.2f}"/>'
        for i, share in enumerate(line.missing)
        if share > 0
    ]
    return svg("line", STRIP + 8, drawn)


def calendar(findings: Findings) -> Markup:
    """Return the longest gaps on a time line."""
    times = findings.times
    if times is None or not times.gaps:
        return Markup("")
    from datetime import datetime

    first, last = datetime.fromisoformat(times.first), datetime.fromisoformat(times.last)
    whole = max((last - first).total_seconds(), 1.0)
    wide = 4 * WIDTH
    drawn = [f'<rect class="track" x="0" y="8" width="{wide:.0f}" height="8" rx="4"/>']
    for start, steps in times.gaps:
        x = (datetime.fromisoformat(start) - first).total_seconds() / whole * wide
        length = max(3.0, steps * (times.step or 0.0) / whole * wide)
        drawn.append(
            f'<rect class="gap" x="{x:.1f}" y="2" width="{length:.1f}" height="20" rx="1.5"/>'
        )
    return svg("calendar", 24, drawn, wide)


def heat(value: float | None) -> str:
    """Return the CSS class of a correlation: -5 ... 5."""
    return "none" if value is None else f"h{round(abs(value) * 5)}{'n' if value < 0 else 'p'}"


def _runs(line: Timeline) -> Sequence[list[int]]:
    """Return runs of adjacent slices that have numbers."""
    runs: list[list[int]] = []
    for i, x in enumerate(line.median):
        if x is None:
            continue
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


__all__ = ["page", "write"]
