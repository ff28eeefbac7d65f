"""Shows an interpretation on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.interpret.figures import Interpretation
from engine.interpret.judging import NAMES
from engine.types.plural import counted, percent, short_number

MOST = 20
"""The most columns, features and slices that a table shows; the page and the JSON have all."""
BAR = 20
"""The characters of the longest bar."""


def parts(found: Interpretation) -> Iterator[RenderableType]:
    """Return what to print, from top to bottom."""
    yield Text(f"{found.name}: {found.model}", style="bold")
    yield Text(f"{counted(found.rows, 'row')}, {found.which}")
    if found.sentences:
        yield _list("what to know", found.sentences)
    yield _figures(found)
    yield _importances(found)
    if found.attributions:
        yield _attributions(found)
    if found.calibrations:
        yield _calibrations(found)
    if found.quantiles:
        yield _quantiles(found)
    if found.slices:
        yield _slices(found)
    yield _worst_rows(found)
    if found.left_out:
        yield _list("not looked at, or not exactly", found.left_out)


def _list(title: str, sentences: Sequence[str]) -> Panel:
    lines = (Text(f"• {sentence}") for sentence in sentences)
    return Panel(Group(*lines), title=title, title_align="left")


def _figures(found: Interpretation) -> Table:
    table = Table(title=f"'{escape(found.target)}' ({found.task})", title_justify="left")
    for name in found.figures:
        table.add_column(NAMES[name], justify="right")
    table.add_row(*map(_number, found.figures.values()))
    return table


def _importances(found: Interpretation) -> Table:
    table = _table(
        f"importance: what a column's permutation costs ({found.repeats} times)",
        "column", (f"{NAMES[found.metric]} worse by", "95 % interval"), "",
    )  # fmt: skip
    most = max((each.worse for each in found.importances), default=0.0)
    for each in found.importances[:MOST]:
        table.add_row(
            Text(each.column),
            _number(each.worse),
            f"{_number(each.low)} to {_number(each.high)}",
            _bar(each.worse, most),
            style=None if each.tells else "dim",
        )
    return _with_caption(table, len(found.importances))


def _attributions(found: Interpretation) -> Table:
    table = _table(
        f"integrated gradients: how far a feature moves the score from a mean row's, in "
        f"{found.unit}",
        "feature", ("moves",), "",
    )  # fmt: skip
    most = found.attributions[0].moves
    for each in found.attributions[:MOST]:
        table.add_row(Text(each.feature), _number(each.moves), _bar(each.moves, most))
    return _with_caption(table, len(found.attributions))


def _calibrations(found: Interpretation) -> Table:
    table = _table(
        "reliability: groups of rows by prediction",
        "rows", ("predicted", "observed", "if calibrated"), "",
    )  # fmt: skip
    for each in found.calibrations:
        table.add_row(
            f"{each.rows:,}",
            _number(each.predicted),
            _number(each.observed),
            f"{_number(each.low)} to {_number(each.high)}",
            "" if each.fits else "off",
        )
    return table


def _quantiles(found: Interpretation) -> Table:
    table = _table(
        "quantiles: the share of targets below each, or inside",
        "quantile", ("asked", "targets", "if calibrated", "groups off"), "",
    )  # fmt: skip
    for each in found.quantiles:
        whole = each.whole
        table.add_row(
            each.name,
            percent(each.asked),
            f"{whole.observed:.1%}",
            f"{whole.low:.1%} to {whole.high:.1%}",
            f"{each.off} of {len(each.groups)}",
            "" if whole.fits else "off",
        )
    return table


def _slices(found: Interpretation) -> Table:
    table = _table(
        f"{found.loss} by slice: those of the pipeline, then the worst of each column",
        "slice", ("rows", "mean", "95 % interval"), "",
    )  # fmt: skip
    for each in found.slices[:MOST]:
        table.add_row(
            Text(each.name),
            f"{each.rows:,}",
            _number(each.loss),
            f"{_number(each.low)} to {_number(each.high)}",
            "worse" if each.worse else "",
        )
    return _with_caption(table, len(found.slices))


def _worst_rows(found: Interpretation) -> Table:
    files = {each.partition for each in found.worst_rows}
    where = f" of {escape(next(iter(files)))}" if len(files) == 1 else ""
    table = Table(title=f"worst rows{where}", title_justify="left")
    for name in ("position", "label", "prediction", "values"):
        table.add_column(name, overflow="fold")
    table.add_column(found.loss, justify="right")
    for each in found.worst_rows:
        values = ", ".join(f"{name} = {value}" for name, value in each.values.items())
        place = str(each.position) if where else f"{each.partition}:{each.position}"
        table.add_row(*map(Text, (place, each.label, each.prediction, values)), _number(each.loss))
    return table


def _table(title: str, first: str, numbers: Sequence[str], last: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_column(last)
    return table


def _with_caption(table: Table, count: int) -> Table:
    if count > MOST:
        table.caption = f"{MOST} of {count:,}; --html and --json have all"
        table.caption_justify = "left"
    return table


def _number(value: float) -> str:
    return short_number(value) if abs(value) < float("inf") else ""


def _bar(value: float, most: float) -> str:
    return "█" * max(0, round(value / most * BAR)) if most > 0 else ""


__all__ = ["parts"]
