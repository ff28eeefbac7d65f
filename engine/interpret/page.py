"""An interpretation as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from engine import pages
from engine.interpret.figures import Calibration, Importance, Interpretation, Slice
from engine.interpret.judging import NAMES
from engine.pages import WIDTH, svg
from engine.types.plural import percent, short_number

BAR = 14.0
"""The height of a bar."""
PLOT, EDGE = 280.0, 0.04
"""The sides of the reliability plot, and the share of the span that stays free at each."""


def write(found: Interpretation, path: Path) -> None:
    """Write the page. Raises: HeadraceError if it cannot be written."""
    pages.write(page(found), path)


def page(found: Interpretation) -> str:
    """Return the HTML."""
    return pages.template("engine.interpret").render(
        found=found,
        names=NAMES,
        number=number,
        percent=percent,
        importance=importance,
        bar=bar,
        reliability=reliability,
        interval=interval,
    )


def number(value: float) -> str:
    """Format a number; nothing for one that is not finite."""
    return short_number(value) if abs(value) < float("inf") else ""


def importance(each: Importance, every: Sequence[Importance]) -> Markup:
    """Return a bar of a column's importance, with its interval as a line."""
    scale = _Scale([0.0, *(x for one in every for x in (one.worse, one.low, one.high))])
    return svg("bar", BAR, [scale.rect(0.0, each.worse), *scale.whisker(each.low, each.high)])


def bar(value: float, most: float) -> Markup:
    """Return a bar of a share of the largest value."""
    scale = _Scale([0.0, most])
    return svg("bar", BAR, [scale.rect(0.0, value)])


def interval(each: Slice, every: Sequence[Slice]) -> Markup:
    """Return a mean as a dot on its interval."""
    scale = _Scale([0.0, *(x for one in every for x in (one.low, one.high))])
    return svg("bar", BAR, [*scale.whisker(each.low, each.high), scale.dot(each.loss)])


def reliability(groups: Sequence[Calibration]) -> Markup:
    """Return the plot of labels over predictions, with the band where a calibrated model's groups
    lie, around the diagonal."""
    scale = _Scale([x for one in groups for x in (one.predicted, one.observed)], PLOT, EDGE)

    def at(x: float, y: float) -> str:
        return f"{scale.at(x):.1f},{PLOT - scale.at(y):.1f}"

    upper = [at(one.predicted, one.high) for one in groups]
    lower = [at(one.predicted, one.low) for one in reversed(groups)]
    drawn = [
        f'<polygon class="band" points="{" ".join(upper + lower)}"/>',
        f'<line class="rule" x1="0" y1="{PLOT}" x2="{PLOT}" y2="0"/>',
    ]
    drawn += [
        f'<circle class="{"fits" if one.fits else "off"}" cx="{scale.at(one.predicted):.1f}" '
        f'cy="{PLOT - scale.at(one.observed):.1f}" r="4"/>'
        for one in groups
    ]
    return svg("plot", PLOT, drawn, PLOT)


class _Scale:
    """The way from numbers to places.

    Args:
        values: numbers that must have a place; those that are not finite have none.
        width: of the drawing.
        edge: share of the numbers' span that stays free on both sides.
    """

    def __init__(self, values: Sequence[float], width: float = WIDTH, edge: float = 0.0) -> None:
        known = [value for value in values if abs(value) < float("inf")]
        low, high = min(known, default=0.0), max(known, default=0.0)
        span = (high - low) or 1.0
        self._low, self._span = low - edge * span, span * (1 + 2 * edge)
        self._width = width

    def at(self, value: float) -> float:
        """Return the place of a number, at the edge for one outside."""
        share = (value - self._low) / self._span if value == value else 0.0
        return min(max(share, 0.0), 1.0) * self._width

    def rect(self, start: float, end: float) -> str:
        """Return a bar."""
        left, right = sorted((self.at(start), self.at(end)))
        return f'<rect x="{left:.1f}" y="2" width="{max(right - left, 1):.1f}" height="{BAR - 4}"/>'

    def whisker(self, low: float, high: float) -> list[str]:
        """Return an interval."""
        middle = BAR / 2
        return [
            f'<line x1="{self.at(low):.1f}" y1="{middle}" x2="{self.at(high):.1f}" y2="{middle}"/>'
        ]

    def dot(self, value: float) -> str:
        """Return a mark at a number."""
        return (
            f'<rect class="dot" x="{self.at(value) - 2:.1f}" y="2" width="4" height="{BAR - 4}"/>'
        )


__all__ = ["page", "write"]
