"""Columns may be called nearly anything, from a file through stages and model to a sink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.files.sink import FilesSink
from connectors.files.source import FilesSource
from engine.config import Pipeline, load_class
from engine.run import Run
from engine.scrub import STAGES
from engine.types import Batch, Mark, UserError, is_pattern
from tests.scrub.conftest import beside
from tests.size import examples

NAMES = ("^a.*", "a$", "[x]", "a.b", "a b", 'a"b', "a'b", "a{}b", "%s", "a,b", "ä€", "$", "^")
TABLE = str(Path(__file__).with_name("table.csv"))
N = 40
STAGE_TABLES: dict[str, dict[str, Any]] = {
    "missing": {"columns": ["x"], "strategy": "mean"},
    "missing last": {"columns": ["x"], "strategy": "last", "by": ["k"]},
    "missing last by": {"columns": ["k"], "strategy": "last", "by": ["x"]},
    "missing drop": {"columns": ["x"], "strategy": "drop"},
    "missing constant": {"columns": ["x"], "strategy": "constant", "value": 0},
    "impute": {"columns": ["x", "ab"]},
    "standardize": {"columns": ["x"]},
    "normalize": {"columns": ["x"]},
    "power": {"columns": ["x"]},
    "outliers": {"columns": ["x"], "method": "iqr"},
    "outliers reject": {"columns": ["x"], "method": "iqr", "action": "reject"},
    "anomalies": {"columns": ["x", "ab"]},
    "categories": {"columns": ["x"]},
    "duplicates": {"by": ["x"]},
    "lag": {"column": "x", "time": "t", "every": 1, "steps": [1]},
    "lag by": {"column": "ab", "by": ["x"], "time": "t", "every": 1, "steps": [1]},
    "history": {"columns": ["x", "ab"], "by": ["k"], "rows": 3},
    "history by": {"columns": ["ab"], "by": ["x"], "rows": 3, "keys": 2},
    "lookup": {"path": TABLE, "by": {"k": "key"}, "prefix": "x"},
    "join by": {
        "source": {},
        "by": {"k": "key"},
        "time": "t",
        "event_time": "n",
        "within": 9,
        "columns": ["y"],
        "prefix": "x",
    },
    "window by": {"by": ["x"], "time": "t", "length": 9, "aggregates": {"ab": ["sum", "last"]}},
    "drift": {"columns": ["x"]},
    "split": {"by": ["x"], "test": 0.3},
    "split stratify": {"stratify": "x", "test": 0.3},
    "unpivot": {"columns": ["x", "ab"]},
}
"""A stage, and a word for its test -> its settings, of a column ``x``."""


def rows(name: str, integers: bool) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, N) if integers else rng.normal(size=N)
    frame = pl.DataFrame(
        {
            "_partition": ["p"] * N, "_position": range(N), "ab": rng.normal(size=N),
            "k": rng.choice(["m", "n"], N), "t": range(N),
        }
    )  # fmt: skip
    gaps = pl.Series(rng.random(N) < 0.2)
    return frame.with_columns(pl.Series(name, x).set(gaps, None))


def scrubbed(table: str, name: str) -> tuple[pl.DataFrame, list[pl.DataFrame], Any]:
    kind = table.split()[0]
    own = {
        key: [name if v == "x" else v for v in value] if isinstance(value, list)
        else name if value == "x" else value
        for key, value in STAGE_TABLES[table].items()
    }  # fmt: skip
    cls = load_class(kind, STAGES, "scrub")
    stage = beside(cls(kind, cls.Settings(**own)))
    frame = rows(name, integers=table in ("categories", "duplicates", "lag by", "split stratify"))
    stage.bind(dict(frame.schema))
    batch = Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=N)
    stage.apply(batch)
    done = stage.apply(batch)
    return done.frame, [reject.rows for reject in done.rejects], dict(done.counts)


@pytest.mark.parametrize("table", STAGE_TABLES)
@pytest.mark.parametrize("name", ["^a.*", "a$", "a{}b", 'a"b', "[x]"])
def test_every_stage_takes_a_name_for_a_name(table: str, name: str) -> None:
    """As it does the same column under a plain one."""
    frame, rejected, counts = scrubbed(table, name)
    plain, others, same = scrubbed(table, "x")
    back = [column.replace(name, "x") for column in frame.columns]
    assert back == plain.columns
    renamed = frame.rename(dict(zip(frame.columns, back, strict=True)))
    if table == "unpivot":
        renamed = renamed.with_columns(pl.col("variable").replace(name, "x"))
    assert renamed.equals(plain)
    assert counts == same
    assert [len(part) for part in rejected] == [len(part) for part in others]


@given(
    names=st.lists(st.sampled_from(NAMES) | st.text("^$*.ab[]{}\\|() ", min_size=1, max_size=5),
                   min_size=1, max_size=4, unique=True),
    kind=st.sampled_from(["ndjson", "parquet", "csv"]),
)  # fmt: skip
@example(names=["^a.*", "ab"], kind="ndjson")
@settings(max_examples=examples(60), deadline=None)
def test_what_a_sink_writes_a_source_reads(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], kind: str
) -> None:
    names = [name for name in names if name.strip() == name and not is_pattern(name)]
    frame = pl.DataFrame({name: [float(i), None, 2.5] for i, name in enumerate(names)})
    if not names:
        return
    folder = tmp_path_factory.mktemp("odd")
    place = pl.DataFrame({"_partition": ["p"] * 3, "_position": [0, 1, 2]})
    sink = FilesSink(FilesSink.Settings(path=str(folder), format=kind))
    sink.restore(None)
    sink.write(frame, place)
    sink.flush()
    sink.close()
    source = FilesSource(FilesSource.Settings(path=str(folder)))
    schema = source.schema({})
    piece = source.read(10, 1 << 20, 0.0)
    assert piece is not None
    made, rejects = source.format.decode(piece, schema)
    source.close()
    assert rejects == []
    assert made[names].cast(pl.Float64).equals(frame)


@pytest.mark.parametrize("name", ["^a.*$", "^$"])
def test_what_would_be_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    """Declared, made by a stage, or given by a source of whatever kind."""
    pl.DataFrame({"abc": [1.0], name: [2.0]}).write_parquet(tmp_path / "in.parquet")
    table: dict[str, Any] = {
        "name": "odd", "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "in.parquet")},
    }  # fmt: skip
    assert dict(Run(Pipeline.of(table)).schema) == {"abc": pl.Float64()}
    declared = table["source"] | {"schema": {name: "float64"}}
    derived = {"derive": {"columns": {name: "abc + 1"}}}
    for changed in (table | {"source": declared}, table | {"scrub": derived}):
        with pytest.raises(UserError, match="would stand for all columns whose names match it"):
            Run(Pipeline.of(changed)).assemble()


def test_a_pipeline_of_odd_names(tmp_path: Path) -> None:
    """From a file through stages, model, sink, export and predictions."""
    rng = np.random.default_rng(2)
    frame = pl.DataFrame({name: rng.normal(size=300) for name in NAMES})
    frame = frame.with_columns(
        pl.Series("k$", rng.choice(["u", "v"], 300)), pl.Series("^y.*", frame["a.b"] * 2),
        pl.Series("y2", ["x"] * 300), pl.Series("abc", [9.0] * 300),
    )  # fmt: skip
    frame.write_parquet(tmp_path / "in.parquet")
    table: dict[str, Any] = {
        "name": "odd", "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "in.parquet")},
        "scrub": {
            "missing": {"columns": list(NAMES), "strategy": "mean"},
            "standardize": {"columns": list(NAMES)},
            "categories": {"columns": ["k$"]},
        },
        "model": {"kind": "linear", "target": "^y.*", "numeric": list(NAMES),
                  "categories": ["k$"]},
        "sink": {"kind": "files", "path": str(tmp_path / "out"), "columns": ["^a.*", "^y.*"]},
    }  # fmt: skip
    run = Run(Pipeline.of(table))
    assert run.run().totals.learned == 300
    written = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert written.columns[:2] == ["^a.*", "^y.*"]
    assert written["^y.*"].to_list() == frame["^y.*"].to_list()
    run.export(tmp_path / "model.onnx")
    serve = {
        "name": "serve", "folder": str(tmp_path / "serve"), "source": table["source"],
        "infer": {"model": str(tmp_path / "model.onnx")},
        "sink": {"kind": "files", "path": str(tmp_path / "served"), "format": "ndjson"},
    }  # fmt: skip
    assert Run(Pipeline.of(serve)).run().totals.predicted == 300
    served = pl.read_ndjson(next((tmp_path / "served").glob("*.ndjson")))
    assert served["prediction"].null_count() == 0
    assert served["^a.*"].to_list() == frame["^a.*"].to_list()
