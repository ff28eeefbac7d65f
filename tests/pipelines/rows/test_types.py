"""The columns of a run are those that it began with."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import polars as pl
import pytest

from connectors.dead_letters import FileDeadLetterSource
from connectors.files import inspection
from connectors.files.source import FilesSource
from engine.commands.output import finish
from engine.commands.preflight import preflight
from engine.config import Pipeline
from engine.run import Run
from engine.types import Mark
from models.serving.predictor import OnnxPredictor
from tests.pipelines.conftest import Headrace


def test_a_resumed_run_keeps_its_columns_until_it_starts_over(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(rows)},
            "sink": {"kind": "files", "path": str(tmp_path / "out")},
            "dead_letters": {"limit": 0.5},
        }
    )
    rows.write_text("id,x\n1,1\n2,2\n")
    assert Run(pipeline).run().totals.rejected == 0
    rows.write_text("id,x\n1,1\n2,2\n3,3.5\n4,4\n")
    again = Run(pipeline).run()
    assert (again.totals.read, again.totals.rejected) == (4, 1)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(parts) == 2
    assert {pl.read_parquet_schema(part)["x"] for part in parts} == {pl.Int64()}
    Run(pipeline).run(fresh=True)
    assert pl.read_parquet(tmp_path / "out/*.parquet")["x"].to_list() == [1.0, 2.0, 3.5, 4.0]


def test_a_resumed_run_reads_as_the_first_one_found_the_file_to_be_written(tmp_path: Path) -> None:
    """Words for missing values, delimiter and decimal comma; what comes later says none of it."""
    rows = tmp_path / "rows.csv"
    out = tmp_path / "out"
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(rows)},
            "sink": {"kind": "files", "path": str(out)},
            "dead_letters": {"limit": 0.5},
        }
    )
    head = "# export of today\nid;x\n1;1,5\n2;NA\n"
    rows.write_text(head)
    assert Run(pipeline).run().totals.rejected == 0
    rows.write_text(head + "3;NA\n4;2\n# 5;1\n")
    again = Run(pipeline).run()
    assert (again.resumed, again.totals.read, again.totals.rejected) == (True, 5, 1)
    made = pl.read_parquet(out / "*.parquet")
    assert made.select("id", "x").rows() == [(1, 1.5), (2, None), (3, None), (4, 2.0)]


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_what_a_guess_costs_is_said(
    tmp_path: Path,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Types of text beyond what is looked at are a guess."""
    monkeypatch.setattr(inspection, "INFERENCE_BYTES", 1)
    monkeypatch.setattr(inspection, "MIN_BYTES_PER_FILE", 1)
    monkeypatch.setattr(inspection, "PART", 60)
    values = ["1"] * 95 + ["2.5", "1e400", "n/k", "7", "8"]
    rows = [f"{i},{x}" for i, x in enumerate(values)]
    if suffix == "ndjson":
        numbers = ["1e400", "2.5"]
        quoted = [x if x.isdigit() or x in numbers else f'"{x}"' for x in values]
        rows = [f'{{"id":{i},"x":{x}}}' for i, x in enumerate(quoted)]
    head = "id,x\n" if suffix == "csv" else ""
    path = tmp_path / f"rows.{suffix}"
    path.write_text(head + "\n".join(rows) + "\n")
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(path)},
        }
    )
    summary = Run(pipeline).run()
    assert (summary.totals.read, summary.totals.rejected) == (100, 3)
    said = "the type of column 'x' is a guess, int64, and '2.5' is none; declare \"x\" = \"string\""
    assert [said in remark for remark in summary.remarks] == [True]
    assert summary.remarks[0].startswith("3 rows")
    assert sum(said in record.message for record in caplog.records) == 1
    finish(summary)
    assert summary.remarks[0] in capsys.readouterr().out
    assert not preflight(Run(pipeline))
    assert said in capsys.readouterr().out


LEARNED = """
name = "t"
folder = "{folder}"
[source]
kind = "files"
path = "{folder}.csv"
{settings}
[scrub.missing]
columns = ["x"]
strategy = "median"
[scrub.categories]
columns = ["c"]
size = 8
[model]
kind = "linear"
target = "y"
numeric = ["x"]
categories = ["c"]
"""


@pytest.mark.parametrize(
    ("settings", "learned", "row", "read"),
    [
        ('null_values = ["-", "none"]', ["-,none", "1.5,a"], "-,none", "[null, null]"),
        ('null_values = ["-", "none"]', ["-,none", "1.5,a"], "2.5,NA", "[2.5, 'NA']"),
        ("", ["NA,a", "2.5,b"], "1.5,NA", "[1.5, null]"),
        ("null_values = []", ["1.5,NA", "2.5,b"], "1.5,NA", "[1.5, 'NA']"),
        ('decimal = ","', ['"1,5",a', '"2,5",b'], '"3,5",b', "[3.5, 'b']"),
    ],
)
def test_a_model_file_knows_how_cells_were_read(
    tmp_path: Path, headrace: Headrace, settings: str, learned: list[str], row: str, read: str
) -> None:
    """Predictions are those for the cells as the training run read them, whatever the new file
    would make of them by itself."""
    lines = [f"{line},{i % 7}" for i, line in enumerate(learned * 40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,c,y", *lines]))
    file = tmp_path / "t.toml"
    file.write_text(LEARNED.format(folder=tmp_path / "t", settings=settings))
    run = Run(file)
    assert run.run().totals.rejected == 0
    run.export(tmp_path / "model.onnx")
    (tmp_path / "new.csv").write_text(f"x,c\n{row}\n")
    words = ["--input", tmp_path / "new.csv", "--output", tmp_path / "out"]
    code, _, err = headrace("predict", tmp_path / "model.onnx", *words)
    assert code == 0, err
    made = pl.read_parquet(tmp_path / "out" / "*.parquet")
    cells = ["null" if cell is None else repr(cell) for cell in made.select("x", "c").row(0)]
    assert f"[{', '.join(cells)}]" == read


@pytest.mark.parametrize("mixed", [False, True], ids=["files", "mix"])
def test_a_resumed_server_reads_cells_as_its_first_run_did(tmp_path: Path, mixed: bool) -> None:
    """Whatever files come later, also into a mix, they are parsed as in training."""
    cells = ["n/a" if i % 3 else f"{i % 9},5" for i in range(120)]
    lines = [f"{cell};{'pq'[i % 2]};{i % 7}" for i, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["x;c;y", *lines]))
    told = 'null_values = ["n/a"]\ndecimal = ","\ndelimiter = ";"'
    file = tmp_path / "t.toml"
    file.write_text(LEARNED.format(folder=tmp_path / "t", settings=told))
    run = Run(file)
    assert run.run().totals.rejected == 0
    run.export(tmp_path / "model.onnx")
    (tmp_path / "new").mkdir()
    source = {"kind": "files", "path": str(tmp_path / "new")}
    table = {
        "name": "served", "folder": str(tmp_path / "served"),
        "source": {"kind": "mix", "sources": {"one": source}} if mixed else source,
        "infer": {"model": str(tmp_path / "model.onnx")},
        "sink": {"kind": "files", "path": str(tmp_path / "out")},
    }  # fmt: skip
    for n in (1, 2):
        rows = ["x;c", *(f"{cell};p" for cell in cells[:8]), f"{n},5;q"]
        (tmp_path / "new" / f"{n}.csv").write_text("\n".join(rows) + "\n")
        totals = Run(Pipeline.of(table)).run().totals
        assert (totals.predicted, totals.rejected) == (9 * n, 0)
    made = pl.read_parquet(tmp_path / "out" / "*.parquet").drop("_position")
    first, second = made.partition_by("_partition", maintain_order=True, include_key=False)
    assert first.head(8).equals(second.head(8))


def test_dead_letters_are_read_as_training_read_cells(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("x;c\n1,5;p\n")
    (tmp_path / "dead").mkdir()
    raw = base64.b64encode(b"1,5;p\n").decode()
    letter = {"_partition": str(tmp_path / "new.csv"), "_position": 4, "raw": raw}
    (tmp_path / "dead" / "part-00000000.ndjson").write_text(json.dumps(letter) + "\n")
    own = FilesSource(FilesSource.Settings(path=str(tmp_path / "new.csv")))
    letters = FileDeadLetterSource(tmp_path / "dead", own)
    letters.use_parse_settings({"decimal": ",", "delimiter": ";", "null_values": ("p",)})
    schema = letters.schema({"x": pl.Float64(), "c": pl.String()})
    letters.seek(Mark())
    records = letters.read(10, 1 << 20, 1.0)
    assert records is not None
    frame, rejects = letters.format.decode(records, schema)
    assert not rejects
    assert frame.select("x", "c").row(0) == (1.5, None)


def test_what_is_said_now_holds_and_what_does_not_suit_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reading = {"null_values": ["-"], "decimal": ",", "coerce": "strict", "words": ["NA"]}
    (tmp_path / "a.csv").write_text("x;c\n1.5;-\n-;NA\n")
    source = FilesSource(FilesSource.Settings(path=str(tmp_path / "a.csv"), null_values=["NA"]))
    source.use_parse_settings({**reading, "decimal": "."})
    (said,) = [r.getMessage() for r in caplog.records if "the model learned" in r.getMessage()]
    assert 'where the model learned: coerce = "strict", decimal = "."; [source]' in said
    schema = source.schema({})
    piece = source.read(10, 1 << 20, 0.0)
    assert piece is not None
    assert source.format.decode(piece, schema)[0].select("x", "c").rows() == [
        ("1.5", "-"), ("-", None),
    ]  # fmt: skip
    (tmp_path / "a.ndjson").write_text('{"x": 1, "c": "-"}\n')
    plain = FilesSource(FilesSource.Settings(path=str(tmp_path / "a.ndjson")))
    plain.use_parse_settings(reading)
    assert plain.settings.coerce == "strict"
    assert plain.settings.null_values == ()


def test_numbers_of_any_type_are_learned_and_exported(tmp_path: Path) -> None:
    kinds = [
        pl.Int8(),
        pl.UInt64(),
        pl.Float32(),
        pl.Float64(),
        pl.Decimal(8, 2),
        pl.Decimal(38, 0),
    ]
    columns = {f"x{i}": kind for i, kind in enumerate(kinds)}
    rows = pl.DataFrame({c: [i % 100 for i in range(400)] for c in (*columns, "y")})
    rows.with_columns(pl.col(c).cast(t) for c, t in columns.items()).write_parquet(
        tmp_path / "rows.parquet"
    )
    pipeline = Pipeline.of(
        {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(tmp_path / "rows.parquet")},
            "model": {"target": "y", "numeric": list(columns), "layers": [4]},
            "export": {"holdout": 0.2},
        }
    )
    done = Run(pipeline).run()
    ranges = json.loads(
        OnnxPredictor(OnnxPredictor.Settings(model=str(done.files["model"]))).metadata["ranges"]
    )
    assert set(ranges) == set(columns)
    assert all(0 <= low < high <= 99 for low, high in ranges.values())


def test_a_model_says_which_stages_its_file_does_not_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.csv").write_text("a,y\n" + "".join(f"{i},{i}\n" for i in range(50)))
    table = {
        "name": "t",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "rows.csv")},
        "scrub": {
            "twice": {"kind": "derive", "columns": {"b": "a * 2"}},
            "duplicates": {"by": ["a"]},
            "late": {"kind": "derive", "columns": {"c": "b + 1"}},
            "standardize": {"columns": ["c"]},
        },
        "model": {"target": "y", "numeric": ["c"], "layers": [4]},
        "export": {},
    }
    model = Run(Pipeline.of(table)).run().files["model"]
    serving = {k: v for k, v in table.items() if k not in ("model", "export")}
    serving |= {"name": "s", "folder": str(tmp_path / "served"), "infer": {"model": str(model)}}
    Run(Pipeline.of(serving)).assemble()
    assert "trained after" not in caplog.text
    (tmp_path / "new.csv").write_text("c\n1\n")
    source = {"kind": "files", "path": str(tmp_path / "new.csv")}
    Run(Pipeline.of({**serving, "scrub": {}, "source": source})).assemble()
    assert (
        "was trained after [scrub.twice] and [scrub.late], which it does not contain" in caplog.text
    )


def test_a_run_that_is_stopped_says_how_its_model_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.csv").write_text("a,y\n" + "".join(f"{i},{i}\n" for i in range(50)))
    table = {
        "name": "t",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "rows.csv")},
        "loader": {"batch_rows": 10},
        "model": {"target": "y", "numeric": ["a"], "layers": [4]},
        "export": {},
    }
    caplog.set_level("INFO")
    done = Run(Pipeline.of(table, where="t.toml"), watch=lambda loop, _: loop.stop()).run()
    assert done.stopped
    assert "model" not in done.files
    assert "that was stopped. Its checkpoint is saved: 'headrace export" in caplog.text
