"""The plot of the error over time: the model beside its baselines, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from engine.system import atomic
from engine.types.plural import short_number

LIGHT_FILE, DARK_FILE = "error.png", "error-dark.png"
FILES = (LIGHT_FILE, DARK_FILE)
MAX_BASELINES = 5
SUBTITLE = "mean error of predictions, each made before its row is learned"
MAX_TITLE = 82
MAX_LABEL = 26
"""Characters of a line's label; a longer name ends with an ellipsis."""
LINE_HEIGHT = 1.35
"""Distance of two labels' middles, in heights of a label."""
LABEL_AT = 1.045
"""Left end of the labels, in widths of the axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """The colours of a page. Those of the lines are Okabe and Ito's, distinct to colour-blind
    readers too."""

    paper: str
    ink: str
    grid: str
    model: str
    baselines: tuple[str, ...]


LIGHT = Theme(
    paper="#FFFFFF",
    ink="#1C1B19",
    grid="#DDDAD2",
    model="#0072B2",
    baselines=("#E69F00", "#CC79A7", "#009E73", "#D55E00", "#8A8A8A"),
)
DARK = Theme(
    paper="#151618",
    ink="#E9E7E2",
    grid="#34373D",
    model="#56B4E9",
    baselines=("#E69F00", "#CC79A7", "#00B383", "#E8743B", "#8A8A8A"),
)


def write(history: pl.DataFrame, folder: Path, *, title: str) -> Path:
    """Write the plot for light and for dark pages; return the light one's path.

    Args:
        history: from `Evaluation.history`, at least two steps.
        folder: an existing folder.
        title: the name of the pipeline.
    """
    for name, theme in ((LIGHT_FILE, LIGHT), (DARK_FILE, DARK)):
        with atomic.written(folder / name) as temporary:
            draw(history, title=title, theme=theme).savefig(temporary)
    return folder / LIGHT_FILE


def draw(history: pl.DataFrame, *, title: str, theme: Theme = LIGHT) -> Any:
    """Return the plot as a matplotlib figure, 1600 x 800 pixels. Arguments as of `write`."""
    from matplotlib.figure import Figure

    shown = shown_baselines(history)
    figure = Figure(figsize=(10, 5), dpi=160, facecolor=theme.paper)
    axes = figure.add_subplot(facecolor=theme.paper)
    figure.subplots_adjust(left=0.085, top=0.84, bottom=0.12)
    steps = history["time"].to_list()
    lines = [
        *zip(shown, theme.baselines, [1.2] * len(shown), strict=False),
        ("model", theme.model, 2.4),
    ]
    for name, colour, width in lines:
        axes.plot(steps, history[name].to_list(), color=colour, linewidth=width)
    axes.set_ylim(0, _top(history, [*shown, "model"]))
    axes.set_xlim(steps[0], steps[-1])
    _style_axes(axes, history["time"].dtype, theme)
    heading = _shorten(f"{title}: {claim(history, shown)}", MAX_TITLE)
    figure.text(0.02, 0.925, heading, fontsize=14, weight="bold", color=theme.ink)
    figure.text(0.02, 0.87, SUBTITLE, fontsize=11, color=theme.ink)
    _label_lines(figure, axes, history, lines, theme)
    return figure


def shown_baselines(history: pl.DataFrame) -> list[str]:
    """Return the baselines worth a line: the named ones; ``last value``, which means little across
    many keys, only where it is all there is."""
    names = [c for c in history.columns if c not in ("time", "rows", "model")]
    names = [c for c in names if history[c].count()]
    named = [name for name in names if name != "last value"]
    return (named or names)[:MAX_BASELINES]


def claim(history: pl.DataFrame, baselines: Sequence[str]) -> str:
    """Return the result in words, over the second half of the stream."""
    half = history.tail(max(1, history.height // 2))

    def level(name: str) -> float:
        rows = half.filter(pl.col(name).is_not_null())
        return float((rows[name] * rows["rows"]).sum()) / max(1, int(rows["rows"].sum()))

    if not baselines:
        return f"mean error {level('model'):.4g}"
    best = min(baselines, key=level)
    ratio = level("model") / level(best) if level(best) else 1.0
    if ratio >= 1:
        return f"no better than '{best}' yet"
    return f"{1 - ratio:.0%} less error than '{best}', the best baseline"


def spread(levels: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending levels apart as little as possible.

    Args:
        levels: ascending.
        gap: the least distance of two neighbours of the result.
        low, high: the bounds of the result, at least ``gap * (len(levels) - 1)`` apart.

    Returns: ascending levels with the least sum of squared moves (isotonic regression, by pooling
        adjacent violators), shifted into the bounds.
    """
    pools: list[list[float]] = []  # each with the levels, less their place in the row of gaps
    for i, level in enumerate(levels):
        pools.append([level - i * gap])
        while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
            last = pools.pop()
            pools[-1].extend(last)
    flat = [_mean(pool) for pool in pools for _ in pool]
    room = high - gap * (len(levels) - 1)
    return [min(max(level, low), room) + i * gap for i, level in enumerate(flat)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _top(history: pl.DataFrame, names: Sequence[str]) -> float:
    """Return the top of the axis: above nearly everything; single bursts may leave the frame."""
    tops = [history[name].quantile(0.99) or 0.0 for name in names]
    return 1.15 * max(tops) or 1.0


def _style_axes(axes: Any, time: pl.DataType, theme: Theme) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def numbers(axis: Any) -> FuncFormatter:
        return FuncFormatter(lambda x, _: short_number(x, among=axis.get_majorticklocs()))

    axes.yaxis.set_major_formatter(numbers(axes.yaxis))
    if time.is_numeric():
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.xaxis.set_major_formatter(numbers(axes.xaxis))
        axes.set_xlabel("rows", loc="right", fontsize=12, color=theme.ink)
    else:
        dates = AutoDateLocator(  # type: ignore[no-untyped-call]
            minticks=3, maxticks=8
        )
        axes.xaxis.set_major_locator(dates)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(dates))  # type: ignore[no-untyped-call]
        axes.xaxis.get_offset_text().set(color=theme.ink, fontsize=12)
    axes.tick_params(labelsize=12, colors=theme.ink, length=0, pad=6)
    axes.grid(axis="y", linewidth=0.8, color=theme.grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.ink)


def _label_lines(
    figure: Any,
    axes: Any,
    history: pl.DataFrame,
    lines: Sequence[tuple[str, str, float]],
    theme: Theme,
) -> None:
    """Write each line's name right of its end, and join the two in the line's colour."""
    top = axes.get_ylim()[1]
    ends = sorted((min(_last(history[name]), top), name, colour, w) for name, colour, w in lines)
    texts = [
        axes.text(
            LABEL_AT,
            0.0,
            _shorten(name, MAX_LABEL),
            transform=axes.get_yaxis_transform(),
            color=theme.ink,
            va="center",
            fontsize=12,
            weight="bold" if name == "model" else "normal",
        )
        for _, name, _, _ in ends
    ]
    boxes = [text.get_window_extent() for text in texts]
    room = 0.985 - max(box.width for box in boxes) / figure.bbox.width
    left = axes.get_position().x0
    figure.subplots_adjust(right=left + (room - left) / LABEL_AT)
    height = max(box.height for box in boxes)
    gap = LINE_HEIGHT * height / axes.get_window_extent().height * top
    places = spread([level for level, *_ in ends], gap, gap / 2, top)
    for text, place, (level, _, colour, width) in zip(texts, places, ends, strict=True):
        text.set_y(place)
        axes.plot(
            [1.0, 1.012, 1.028, 1.04],
            [level, level, place, place],
            transform=axes.get_yaxis_transform(),
            color=colour,
            linewidth=width,
            clip_on=False,
            solid_joinstyle="round",
        )


def _last(column: pl.Series) -> float:
    """Return the last value of a line; 0 for a line without values."""
    values = column.drop_nulls()
    return float(values[-1]) if len(values) else 0.0


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


__all__ = ["FILES", "draw", "write"]
