"""Every record has one end: `read + added = learned + predicted + cleaned + rejected`, in the
checkpoint, in the files and on the metrics page, whatever the data look like and however often the
run was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Pipeline
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch, Mark, UserError
from tests.pipelines.conftest import Headrace
from tests.size import examples

VALUE = st.none() | st.sampled_from([0, 1, -2.5, 1e39, -1e300, 2**70, "abc", "é", [1]])
KEY = st.none() | st.sampled_from(["n", "e", "s", "never", '"'])
LABEL = st.none() | st.sampled_from([1, 2.5, -1e300, "label"])
ROW = st.tuples(VALUE, VALUE, KEY, LABEL)
ODD = st.sampled_from(["{", "", "[]", '{"a": {"b": 1}}', '{"n": 99999999999999999999}', "\x00"])


def pipeline(folder: Path, **sections: Any) -> Pipeline:
    """Every kind of stage that can reject, fill or grow; a row has two labels, unpivoted."""
    table: dict[str, Any] = {
        "name": "account",
        "folder": str(folder / "run"),
        "source": {
            "kind": "files",
            "path": str(folder / "data.ndjson"),
            "schema": {"a": "float64", "b": "float64", "n": "int64", "key": "string"}
            | {"left": "float64", "right": "float64"},
        },
        "loader": {"batch_rows": 5},
        "scrub": {
            "duplicates": {"by": ["a", "b", "key"]},
            "unpivot": {
                "columns": ["left", "right"],
                "variable": "side",
                "value": "y",
                "keep": ["a", "b", "n", "key"],
            },
            "outliers": {"columns": ["b"], "method": "bounds", "low": -1e9, "action": "reject"},
            "missing": {"columns": ["a"], "strategy": "mean"},
            "standardize": {"columns": ["a"]},
            "categories": {"columns": ["key", "side"], "size": 4},
        },
        "model": {
            "target": "y",
            "numeric": ["a", "b"],
            "categories": ["key", "side"],
            "layers": [4],
        },
        "train": {"threads": 1},
        "checkpoint": {"interval_batches": 2},
        "dead_letters": {"limit": 1.0},
        "sink": {"kind": "files", "path": str(folder / "out")},
        "export": {"holdout": 0.3, "compress": None},
    }
    return Pipeline.of({**table, **sections})


def write(folder: Path, rows: list[tuple[Any, ...]], odd: list[str]) -> int:
    names = ("a", "b", "key", "left")
    lines = [
        json.dumps(dict(zip(names, row, strict=True)) | {"n": i, "right": i * 0.5})
        for i, row in enumerate(rows)
    ]
    # Broken lines between whole ones.
    lines = [*lines[: len(lines) // 2], *filter(str.strip, odd), *lines[len(lines) // 2 :]]
    (folder / "data.ndjson").write_text("\n".join(lines) + "\n" if lines else "")
    return len(lines)


@settings(max_examples=examples(25), deadline=None)
@given(rows=st.lists(ROW, max_size=40), odd=st.lists(ODD, max_size=4), stop=st.integers(1, 12))
def test_every_record_has_one_end(rows: list[tuple[Any, ...]], odd: list[str], stop: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        count = write(folder, rows, odd)
        try:
            stopped = run_until(folder, stop)
        except UserError as error:  # nothing but the beginning of an object
            if "has no line that is a JSON object" not in str(error):
                raise
            return
        summary = Run(pipeline(folder)).run()
        totals = summary.totals
        assert summary.resumed == (stopped > 0)
        assert totals.read == count
        assert totals.balanced
        assert totals.rejected == letters(folder)
        assert totals.learned + totals.predicted == results(folder)
        assert totals.rejected == sum(totals.reasons.values())
        page = counters(folder)
        # The page counts one process; the account spans both.
        assert page["source"] + page["added"] == (
            page["learned"] + page["predicted"] + page.get("rejected", 0.0)
        )
        assert page["source"] == count - stopped


def run_until(folder: Path, batches: int) -> int:
    """Run for some batches, as if a signal had come then; how many records were read."""

    def watch(loop: Loop, batch: Batch) -> None:
        if loop.totals.batches >= batches:
            loop.stop()

    return Run(pipeline(folder), watch=watch).run().totals.read


def letters(folder: Path) -> int:
    parts = (folder / "run" / "dead_letters").glob("*.ndjson")
    return sum(len(part.read_text().splitlines()) for part in parts)


def results(folder: Path) -> int:
    return sum(pl.read_parquet(part).height for part in (folder / "out").glob("*.parquet"))


def counters(folder: Path) -> dict[str, float]:
    """Word of ``headrace_<word>_records_total`` -> its sum over labels."""
    found: dict[str, float] = {}
    for line in (folder / "run" / "metrics.prom").read_text().splitlines():
        if "_records_total" in line and not line.startswith("#"):
            word = line.split("_records_total")[0].removeprefix("headrace_")
            found[word] = found.get(word, 0.0) + float(line.split()[-1])
    return found


def test_a_cleaning_pipeline_balances_too(tmp_path: Path) -> None:
    count = write(tmp_path, [(1, 2, "n", 1)] * 30, ["{"])
    made = pipeline(tmp_path, model=None, train=None, export=None)
    totals = Run(made).run().totals
    # 29 rows repeat the first one; each kept record has two sides.
    assert (totals.read, totals.rejected, totals.added, totals.cleaned) == (count, 30, 1, 2)
    assert totals.balanced
    assert (letters(tmp_path), results(tmp_path)) == (30, 2)


def test_what_stages_count_is_on_the_page_and_in_the_last_lines(
    tmp_path: Path, headrace: Headrace
) -> None:
    """Of a run without a model, and of every stage by its name; nothing is said of zeros."""
    (tmp_path / "rows.csv").write_text("a,b\n1,5\n,5\n,900\n2,5\n")
    (tmp_path / "clean.toml").write_text(
        f"""
name = "clean"
folder = "{tmp_path / "run"}"
source = {{kind = "files", path = "{tmp_path / "rows.csv"}"}}
sink = {{kind = "files", path = "{tmp_path / "out"}"}}
[scrub.holes]
kind = "missing"
columns = ["a"]
strategy = "constant"
value = 0
[scrub.bounds]
kind = "outliers"
columns = ["b"]
method = "bounds"
high = 10
[scrub.more]
kind = "missing"
columns = ["b"]
strategy = "constant"
value = 0
"""
    )
    code, out, err = headrace("run", tmp_path / "clean.toml")
    assert code == 0, err
    assert "counted by stages: bounds: clipped 1, holes: filled 2\n" in out
    page = (tmp_path / "run" / "metrics.prom").read_text()
    assert {line for line in page.splitlines() if line.startswith("headrace_stage_events")} == {
        'headrace_stage_events_total{event="clipped",stage="bounds"} 1.0',
        'headrace_stage_events_total{event="filled",stage="holes"} 2.0',
        'headrace_stage_events_total{event="filled",stage="more"} 0.0',
    }


def test_a_count_below_zero_is_refused() -> None:
    batch = Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0).counted("window", late=2)
    assert batch.counted("window", late=0).counts == {("window", "late"): 2}
    with pytest.raises(ValueError, match=r"'window' counted -1 late: expected 0 or more"):
        batch.counted("window", late=-1)
