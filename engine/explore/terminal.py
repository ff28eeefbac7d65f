"""Shows findings on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.explore.findings import ColumnProfile, Findings
from engine.types.plural import counted, short_number

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 20


def parts(findings: Findings) -> Iterator[RenderableType]:
    """Return what to print, from top to bottom; a text is to be copied: it is not broken."""
    size = f"{counted(findings.rows, 'row')}, {counted(len(findings.columns), 'column')}"
    yield Text(f"{findings.name}: {size}", style="bold")
    if findings.sentences:
        yield Text("what to know:", style="bold")
        yield "\n".join(f"• {sentence}" for sentence in findings.sentences)
    yield columns(findings)
    if findings.stages:
        yield stages(findings)
    if findings.suggestion:
        yield Text("a [scrub] that suits it:", style="bold")
        yield findings.suggestion.rstrip()  # to be copied: no frame, no line breaks
    if findings.left_out:
        lines = (Text(f"• {sentence}", style="dim") for sentence in findings.left_out)
        yield Panel(Group(*lines), title="not looked at, or not exactly", title_align="left")


def columns(findings: Findings) -> Table:
    """Return one table row per column."""
    table = Table(title="columns", title_justify="left")
    table.add_column("column", overflow="fold")
    table.add_column("type")
    for name in ("missing", "different", "smallest", "median", "largest"):
        table.add_column(name, justify="right")
    table.add_column("distribution")
    for column in findings.columns:
        ends = (
            [short_number(column.quantiles[i]) for i in (0, 3, 6)]
            if column.numeric
            else _ends(column)
        )
        table.add_row(
            Text(column.name),
            column.kind,
            f"{column.missing / findings.rows:.1%}" if column.missing else "",
            f"{'' if column.exact else '~'}{column.distinct:,}" if column.distinct else "",
            *(Text(end) for end in ends),
            Text(sparkline(column)),
        )
    return table


def stages(findings: Findings) -> Table:
    """Return a table of what each stage did."""
    table = Table(title="the pipeline's stages", title_justify="left")
    table.add_column("stage")
    table.add_column("did")
    for stage, counts in findings.stages.items():
        did = ", ".join(f"{name} {n:,}" for name, n in counts.items() if n)
        table.add_row(Text(stage), Text(did))
    return table


def sparkline(column: ColumnProfile) -> str:
    """Return the histogram in eighths of a line; without one, the most frequent values."""
    if column.bars:
        step = max(1, len(column.bars) // WIDTH)
        sums = [sum(column.bars[i : i + step]) for i in range(0, len(column.bars), step)]
        return bars(sums)
    if column.top:
        return ", ".join(value for value, _ in column.top[:3])[: 2 * WIDTH]
    return ""


def bars(values: Sequence[float]) -> str:
    """Return one block per value, the largest full; a positive value is always visible."""
    most = max(values, default=0.0)
    if most <= 0:
        return ""
    return "".join(
        BLOCKS[max(1 if v > 0 else 0, round(v / most * (len(BLOCKS) - 1)))] for v in values
    )


def _ends(column: ColumnProfile) -> list[str]:
    if column.first is not None:
        return [column.first, "", column.last or ""]
    if column.longest is not None:
        ends = [f"{short_number(size or 0)} B long" for size in (column.shortest, column.longest)]
        return [ends[0], f"mean {short_number(column.length or 0)} B", ends[1]]
    return ["", "", ""]


__all__ = ["bars", "columns", "parts", "sparkline", "stages"]
