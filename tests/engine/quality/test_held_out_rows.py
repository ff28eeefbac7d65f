"""The rows that a split holds out, in the report for people."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from engine.quality.report import tables


def figures(coverage: float, second: float = 0.5) -> dict[str, Any]:
    each = {
        f"q{at}": {"asked": asked, "below": asked, "pinball": 0.1}
        for at, asked in enumerate((0.1, second, 0.9))
    }
    return {
        "rows": 100, "mae": 1.0, "coverage": coverage, "coverage_asked": 0.8, "pinball": 0.1,
        "width": 2.0, "quantiles": each,
    }  # fmt: skip


def shown(**slices: Any) -> str:
    report = {"all": figures(0.7, 0.50001), "slices": slices, "classes": []}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*tables(report))
    return console.export_text()


def test_the_interval_has_a_line_for_rows_that_are_never_learned() -> None:
    text = shown(test=figures(0.775), validation={}, east={})
    (line,) = [line for line in text.splitlines() if "q0 to q2, test" in line]
    assert "77.5%" in line
    assert "validation" not in text  # the split has no such part
    assert "east" in text


def test_a_quantile_has_all_its_digits() -> None:
    assert "50.001%" in shown()
