"""What `check` looks at: rows of files from the first to the last, none where there are none."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from connectors.files.source import SAMPLED_FILES
from tests.connectors.conftest import files
from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "sample"
folder = "run"
[source]
kind = "files"
path = "in"
[source.schema]
a = "float64"
y = "float64"
[model]
target = "y"
numeric = ["a"]
layers = [2]
[train]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text(PIPELINE)
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def csv(folder: Path, name: str, value: object, rows: int = 100) -> None:
    (folder / name).write_text("a,y\n" + f"{value},1.0\n" * rows)


@pytest.mark.parametrize("bad", ["0.csv", "3.csv", "7.csv"])
def test_rows_that_are_broken_in_any_of_the_files_are_seen(
    folder: Path, headrace: Headrace, bad: str
) -> None:
    for i in range(8):
        csv(folder, f"{i}.csv", 1.5)
    csv(folder, bad, "x")
    code, out, _ = headrace("check", "p.toml")
    assert code == 2
    assert f"Every sampled row of in/{bad} is rejected in decode, most of them as wrong_type" in out
    assert "Expected float64, got 'x' in column 'a'." in out
    assert "of 8 partitions" in out


def test_of_many_files_the_first_the_last_and_some_between(
    folder: Path, headrace: Headrace, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(100):
        csv(folder, f"{i:03}.csv", i)
    source = files(folder)
    source.schema({})
    with caplog.at_level("INFO", "headrace"):
        pieces = source.sample(1_000, 1.0)
    names = [piece.partition for piece in pieces]
    assert len(set(names)) == len(names) == SAMPLED_FILES
    assert names[0].endswith("000.csv")
    assert names[-1].endswith("099.csv")
    assert sum(map(len, pieces)) <= 1_000
    assert f"The sample is of {SAMPLED_FILES} of 100 files" in caplog.text


@pytest.mark.parametrize("format", ["parquet", "ndjson"])
def test_files_of_other_formats_are_sampled_the_same(folder: Path, format: str) -> None:
    for i in range(3):
        frame = pl.DataFrame({"a": [float(i)] * 10})
        place = folder / f"{i}.{format}"
        frame.write_parquet(place) if format == "parquet" else frame.write_ndjson(place)
    source = files(folder)
    schema = source.schema({})
    pieces = source.sample(6, 1.0)
    made = pl.concat([source.format.decode(piece, schema)[0] for piece in pieces])
    assert made["a"].to_list() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_what_short_files_leave_the_others_have(folder: Path) -> None:
    for i, rows in enumerate([1, 0, 50]):
        csv(folder, f"{i}.csv", i, rows=rows)
    source = files(folder)
    source.schema({})
    assert [len(piece) for piece in source.sample(30, 1.0)] == [1, 29]


def test_a_header_alone_is_no_mistake(folder: Path, headrace: Headrace) -> None:
    csv(folder, "0.csv", 0, rows=0)
    code, out, _ = headrace("check", "p.toml")
    assert (code, "The source has no records yet" in out) == (0, True)
    assert headrace("run", "p.toml")[0] == 0


SENSOR = PIPELINE.replace('a = "float64"', 'a = "string"').replace(
    "[model]", "[scrub.derive]\ncolumns = { a = \"CAST(REPLACE(a, ',', '.') AS DOUBLE)\" }\n[model]"
)


def test_advice_that_a_stage_follows_is_not_repeated_and_what_it_rejects_is_told(
    folder: Path, headrace: Headrace
) -> None:
    pipeline = folder.parent / "p.toml"
    rows = [f'"1,{i % 100}",1.0' for i in range(998)]
    (folder / "a.csv").write_text("\n".join(["a,y", "---,1.0", *rows, "---,2.0", ""]))
    pipeline.write_text(SENSOR)
    code, out, _ = headrace("check", "p.toml")
    assert code == 0
    assert "'a' is text" not in out
    assert "2 of 1,000 sampled rows are rejected in derive as invalid: " in out
    pipeline.write_text(SENSOR.replace("{ a = ", "{ b = ").replace('["a"]', '["b"]'))
    assert "'a' is text" not in headrace("check", "p.toml")[1]
    pipeline.write_text(
        SENSOR.replace("{ a = ", "{ b = ")
        .replace("CAST(REPLACE(a, ',', '.') AS DOUBLE)", "CASE WHEN a > '' THEN 1.5 END")
        .replace('["a"]', '["b"]')
    )
    out = headrace("check", "p.toml")[1]
    assert """'---' in 2 rows: [source] null_values = ["---"] reads words""" in out
    assert "TRY_CAST(REPLACE(" in out


def test_a_reason_of_several_files_is_told_once(folder: Path, headrace: Headrace) -> None:
    """With the rows of all of them, as they count against one limit."""
    for i in range(3):
        (folder / f"{i}.csv").write_text("a,y\n" + "1.5,1.0\n" * 100 + "x,1.0\n")
    code, out, _ = headrace("check", "p.toml")
    assert code == 0
    flat = " ".join(out.split())
    assert flat.count("rejected in decode as wrong_type") == 1
    assert "3 of 303 sampled rows are rejected in decode as wrong_type: Expected float64" in flat


@pytest.mark.parametrize(
    ("record", "code", "told"),
    [
        (
            '{"trip": {"km": 1.5}, "y": 1.0}',
            2,
            "! No record of the sample has a value for 'trip.km', but some have one inside: "
            'write [source.paths] "trip.km" = "trip.km".',
        ),
        (
            '{"trip": {"miles": 1.5}, "y": 1.0}',
            0,
            "No record of the sample has a value for 'trip.km': leave the column out unless later",
        ),
        ('{"trip.km": 1.5, "y": 1.0}', 0, None),
    ],
)
def test_columns_without_any_value_are_told(
    folder: Path, headrace: Headrace, record: str, code: int, told: str | None
) -> None:
    (folder / "a.ndjson").write_text(f"{record}\n" * 50)
    missing = '[scrub.missing]\ncolumns = ["trip.km"]\n[model]'
    text = PIPELINE.replace("a = ", '"trip.km" = ').replace('["a"]', '["trip.km"]')
    Path("p.toml").write_text(text.replace("[model]", missing))
    done, out, err = headrace("check", "p.toml")
    assert done == code, out + err
    assert told in out if told else "No record of the sample" not in out
    if code:
        paths = '[source.paths]\n"trip.km" = "trip.km"\n[model]'
        Path("p.toml").write_text(text.replace("[model]", paths))
        assert headrace("check", "p.toml")[0] == 0
