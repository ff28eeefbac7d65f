"""The error plot: labels stand apart and belong to their lines, on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from engine.quality import error_plot
from engine.quality.error_plot import DARK, LIGHT, draw, spread
from engine.types.plural import short_number


def history(**lines: Sequence[float | None]) -> pl.DataFrame:
    n = len(lines["model"])
    start = datetime(2019, 1, 1)
    days = pl.datetime_range(start, start.replace(year=2026), f"{7 * 365 // n}d", eager=True)
    return pl.DataFrame({"time": days[:n], "rows": [100] * n, **lines})


NAMES = ("last hour", "same hour yesterday", "same hour last week", "b" * 60, "the fifth")
CASES = {
    "one line": history(model=[3.0, 2.0, 1.0]),
    "all zero": history(model=[0.0, 0.0], x=[0.0, 0.0]),
    "two close": history(model=[3.0, 2.001], x=[3.0, 2.0]),
    "two equal at the bottom": history(model=[9.0, 0.0], x=[9.0, 0.0]),
    "last above the frame": history(model=[1.0] * 200 + [90.0], x=[1.0] * 200 + [80.0]),
    "ends without a value": history(model=[3.0, 2.0], x=[3.0, None]),
    "six close": history(model=[5.0, 5.0], **{n: [5.0, 5.0 + i / 99] for i, n in enumerate(NAMES)}),
    "by rows": history(model=[5.0, 5.0], x=[6.0, 6.0]).with_columns(time=pl.Series([0, 10_000])),
}


def labels(figure: Any) -> dict[str, Any]:
    return {text.get_text(): text for text in figure.axes[0].texts}


@pytest.mark.parametrize("case", CASES)
def test_labels_stand_apart_within_the_picture(case: str) -> None:
    figure = draw(CASES[case], title="t")
    boxes = [text.get_window_extent() for text in labels(figure).values()]
    assert len(boxes) == len(error_plot.shown_baselines(CASES[case])) + 1
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    width, height = figure.bbox.size
    for box in boxes:
        assert figure.axes[0].get_window_extent().x1 < box.x0
        assert box.y0 > 0
        assert box.y1 < height
        assert box.x1 < width


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_each_label_is_joined_to_the_end_of_its_line(theme: error_plot.Theme) -> None:
    frame = history(model=[5.0, 4.0], a=[5.0, 4.01], b=[5.0, 3.99], c=[5.0, 4.0])
    figure = draw(frame, title="t", theme=theme)
    axes = figure.axes[0]
    n = len(axes.lines) // 2
    joins = {to_hex(line.get_color()): line for line in axes.lines[n:]}
    assert len(joins) == n == 4
    for name, line in zip(["a", "b", "c", "model"], axes.lines[:n], strict=True):
        join = joins[to_hex(line.get_color())]
        assert join.get_ydata()[0] == frame[name][-1]
        assert join.get_ydata()[-1] == labels(figure)[name].get_position()[1]


def test_axes_begin_at_zero_and_years_read_as_years() -> None:
    figure = draw(CASES["two close"], title="t")
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_yticklabels()[0].get_text() == "0"
    years = history(model=[1.0] * 300, x=[2.0] * 300)
    figure = draw(years, title="t")
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks[:3] == ["2019", "2020", "2021"]


def test_the_numbers_of_an_axis_are_all_grouped_or_none() -> None:
    rows = history(model=[1.0] * 300, x=[2.0] * 300).with_columns(time=pl.int_range(0, 300) * 100)
    figure = draw(rows, title="t")
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert {"5,000", "10,000"} <= set(ticks)


@pytest.mark.parametrize("days", [1e-4, 0.12, 2.9, 8, 89, 900, 1_702, 9_000])
def test_every_length_of_time_has_ticks(days: float) -> None:
    time = [datetime(2019, 1, 1), datetime(2019, 1, 1) + timedelta(days=days)]
    figure = draw(CASES["two close"].head(2).with_columns(time=pl.Series(time)), title="t")
    figure.canvas.draw()  # a warning is an error
    assert 2 <= len(figure.axes[0].get_xticks()) <= 9


def test_both_files_are_written(tmp_path: Path) -> None:
    path = error_plot.write(CASES["one line"], tmp_path, title="t")
    assert path == tmp_path / "error.png"
    for name in error_plot.FILES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@given(st.lists(st.floats(0, 100), max_size=6), st.floats(0.1, 10))
def test_spread_keeps_order_distance_and_bounds(levels: list[float], gap: float) -> None:
    levels = sorted(levels)
    placed = spread(levels, gap, 0, 100)
    assert all(b - a >= gap * (1 - 1e-9) for a, b in pairwise(placed))
    assert all(-1e-9 <= x <= 100 + 1e-9 for x in placed)
    if all(b - a >= gap for a, b in pairwise(levels)):
        assert placed == pytest.approx(levels)


def test_spread_moves_neighbours_to_both_sides() -> None:
    assert spread([10, 10, 50], 4, 0, 100) == [8, 12, 50]
    assert spread([0, 0], 4, 0, 100) == [0, 4]
    assert spread([100, 100], 4, 0, 100) == [96, 100]


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (2019, "2019"), (2019.0, "2019"), (9_999, "9999"), (10_000, "10,000"), (0, "0"),
        (0.123456, "0.1235"), (1234.56, "1235"), (-12_345.6, "-12,346"), (61_367, "61,367"),
        (1.5e6 + 0.5, "1.5e+06"), (9_007_199_254_740_993, "9.007e+15"), (-0.0, "0"),
    ],
)  # fmt: skip
def test_short_numbers(x: float, text: str) -> None:
    assert short_number(x) == text
