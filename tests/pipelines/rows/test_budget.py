"""One budget for everything that waits in the process: queues, sink, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.config import Pipeline
from engine.loading.loader import ITEM_BYTES
from engine.run import Run
from engine.types import UserError


def pipeline(folder: Path, **more: Any) -> Pipeline:
    rows = folder / "rows.ndjson"
    pl.DataFrame(
        {"a": [float(i % 7) for i in range(2_000)], "t": ["x" * 200] * 2_000}
    ).write_ndjson(rows)
    table = {
        "name": "budget",
        "folder": str(folder / "run"),
        "source": {"kind": "files", "path": str(rows)},
        "sink": {"kind": "files", "path": str(folder / "out"), "format": "ndjson"},
        "loader": {"memory_budget": 65_536 * 4, "batch_rows": 100},
        **more,
    }
    return Pipeline.of(table)


def test_the_sinks_rows_count_and_are_bounded(tmp_path: Path) -> None:
    most: list[int] = []
    sizes: list[int] = []

    def watch(loop: Any, batch: Any) -> None:
        held = loop.loader.budget.held()
        most.append(held["sink"])
        sizes.append(ITEM_BYTES + batch.nbytes)
        assert held.keys() >= {"raw", "prepared", "rebatch", "sink", "dead letters"}

    run = Run(pipeline(tmp_path), watch=watch)
    summary = run.run()
    assert summary.totals.cleaned == 2_000
    assert 0 < max(most) <= 65_536 * 4 // 4
    # A batch in the second queue is still counted in the hand that the first gave it to.
    assert run.loop.loader.budget.peak <= 65_536 * 4 + max(sizes)
    page = run.metrics.exposition()[0].decode()
    assert 'headrace_memory_bytes{component="sink"}' in page
    assert pl.read_ndjson(sorted((tmp_path / "out").glob("part-*"))).height == 2_000


def test_a_replay_that_cannot_fit_is_one_sentence(tmp_path: Path) -> None:
    made = pipeline(
        tmp_path,
        model={"target": "a", "numeric": ["b"], "kind": "tabular"},
        scrub={"derive": {"columns": {"b": "a * 2"}}},
        train={"replay_rows": 100_000},
    )
    with pytest.raises(UserError, match=r"replay_rows take 800,000 bytes.*131,072"):
        Run(made).run()


def test_a_record_that_no_budget_holds_is_a_dead_letter(tmp_path: Path) -> None:
    made = pipeline(tmp_path, dead_letters={"limit": 1.0})
    rows = tmp_path / "rows.ndjson"
    with rows.open("a") as file:
        file.write('{"a": 1.0, "t": "' + "y" * 300_000 + '"}\n{"a": 2.0, "t": "last"}\n')
    summary = Run(made).run()
    assert (summary.totals.cleaned, summary.totals.rejected) == (2_001, 1)
    assert summary.totals.reasons == {("decode", "too_large"): 1}
    letters = pl.read_ndjson(sorted((tmp_path / "run" / "dead_letters").glob("part-*")))
    assert "got 300,020" in letters["detail"][0]
