"""A replay goes on after its pipeline's stages were mended: what others have learned stays."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.conftest import Headrace

Write = Callable[..., Path]
TRAINS = """
name = "mended"
folder = "{folder}"
[source]
kind = "files"
path = "{folder}/data.csv"
[loader]
batch_rows = 50
{stages}
[model]
kind = "linear"
target = "y"
numeric = [{numeric}]
[dead_letters]
limit = 1.0
"""
CLEANS = TRAINS.partition("[model]")[0] + "[dead_letters]\nlimit = 1.0\n"
SCALE = '[scrub.standardize]\ncolumns = ["a", "b"]\n'
FILL = '[scrub.missing]\ncolumns = ["a"]\nstrategy = "mean"\n'
REJECT = '[scrub.full]\nkind = "missing"\ncolumns = ["a"]\nstrategy = "drop"\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    n = 200
    frame = pl.DataFrame(
        {
            "a": [None if i % 10 == 0 else i / n for i in range(n)],
            "b": [i % 7 / 7 for i in range(n)],
            "y": [2 * i / n for i in range(n)],
        }
    )
    frame.write_csv(tmp_path / "data.csv")

    def make(stages: str, text: str = TRAINS, numeric: str = '"a", "b"') -> Path:
        file = tmp_path / "mended.toml"
        file.write_text(text.format(folder=tmp_path, stages=stages, numeric=numeric))
        return file

    return make


@pytest.mark.parametrize("task", ["", 'task = "regression"\n'])
def test_rows_that_lacked_a_value_are_learned_once_a_stage_fills_it(
    write: Write, headrace: Headrace, task: str
) -> None:
    """200 different labels are too many for classes, which nobody asks for here."""
    text = TRAINS.replace("target =", f"{task}target =")
    assert headrace("run", write(SCALE, text))[0] == 0
    code, out, err = headrace("replay", write(FILL + SCALE, text))
    assert code == 0, err
    assert "[scrub.missing] is new and knows nothing yet" in err + out
    assert "200 learned" in out
    code, out, err = headrace("run", write(FILL + SCALE, text))  # which goes on as it is now
    assert code == 0, err


def test_a_stage_without_a_state_may_change_go_and_come(write: Write, headrace: Headrace) -> None:
    assert headrace("run", write(REJECT + SCALE, CLEANS))[0] == 0
    zero = '[scrub.derive.columns]\na = "COALESCE(a, 0.5)"\n'
    code, out, err = headrace("replay", write(zero + SCALE, CLEANS))
    assert code == 0, err
    assert "200 cleaned" in out


def test_a_pipeline_without_any_state_takes_any_stage(write: Write, headrace: Headrace) -> None:
    assert headrace("run", write(REJECT, CLEANS))[0] == 0
    code, out, err = headrace("replay", write(FILL + SCALE, CLEANS))
    assert code == 0, err
    assert "200 cleaned" in out


@pytest.mark.parametrize(
    ("stages", "numeric", "said"),
    [
        (
            FILL,
            '"a", "b"',
            "[scrub.standardize] was taken out and has learned from what was read",
        ),
        (
            FILL + SCALE.replace('"a", "b"', '"a"'),
            '"a", "b"',
            "[scrub.standardize] was changed, or the columns that it gets,",
        ),
        (
            FILL + "indicator = true\n" + SCALE,
            '"a*", "b"',
            "[model] gets other features than its weights have learned",
        ),
    ],
)
def test_what_would_lose_a_state_is_refused_with_what_can_be_done(
    stages: str, numeric: str, said: str, write: Write, headrace: Headrace
) -> None:
    assert headrace("run", write(SCALE, numeric=numeric))[0] == 0
    code, _, err = headrace("replay", write(stages, numeric=numeric))
    assert code == 2
    assert said in err
    assert "--fresh" in err


def test_a_run_promises_the_same_to_the_bit_and_refuses(
    write: Write, headrace: Headrace, tmp_path: Path
) -> None:
    assert headrace("run", write(SCALE))[0] == 0
    code, _, err = headrace("run", write(FILL + SCALE))
    assert code == 2
    assert "written with another scrub" in err
    assert json.loads((tmp_path / "schema.json").read_text())["columns"]["a"] == "float64"


def test_a_letter_of_columns_holds_the_row_as_it_was_read(
    write: Write, headrace: Headrace, tmp_path: Path
) -> None:
    """Not as the stages left it: it would be scaled twice when it comes again."""
    at = [datetime(2025, 3, 1)] * 6
    data = pl.DataFrame({"a": [1.0, 2, 3, 4, 5, 6], "b": [0.5] * 6, "y": [1.0, None] * 3, "at": at})
    data.write_parquet(tmp_path / "data.parquet")
    sink = f'[sink]\nkind = "files"\npath = "{tmp_path / "out"}"\n'
    file = write(SCALE, TRAINS.replace("data.csv", "data.parquet") + sink)
    assert headrace("run", file)[0] == 0
    (part,) = (tmp_path / "dead_letters").iterdir()
    letters = pl.read_ndjson(part).sort("_position").to_dicts()
    raw = [json.loads(base64.b64decode(letter["raw"])) for letter in letters]
    assert [row["a"] for row in raw] == [2, 4, 6]
    assert {letter["detail"] for letter in letters} == {"Expected a label in 'y', got null or NaN."}
    label = '[scrub.derive.columns]\ny = "COALESCE(y, a)"\n'
    file.write_text(file.read_text().replace(SCALE, label + SCALE))
    code, out, err = headrace("replay", file)
    assert code == 0, err
    assert "6 learned" in out
    rows = pl.concat([pl.read_parquet(part) for part in (tmp_path / "out").iterdir()])
    assert sorted(rows["y"]) == [1, 1, 1, 2, 4, 6]


# --------------------------------------------------------------------- records that are read anew

FINE = """
name = "fine"
folder = "{folder}"
[source]
kind = "files"
path = "{folder}/read.csv"
{source}
[source.schema]
a = "{a}"
b = "float64"
k = "{k}"
y = "float64"
[loader]
batch_rows = 20
{stages}
[model]
kind = "linear"
target = "y"
numeric = ["a", "b"]
[dead_letters]
limit = 1.0
"""
TABLE = (
    '[scrub.table]\nkind = "lookup"\npath = "{folder}/table.csv"\nby = ["k"]\nmissing = "reject"\n'
)


@pytest.fixture
def fine(tmp_path: Path) -> Write:
    """Of 60 rows, four have halves in `a`, three have "?" in `b`, two a key that no table has."""
    rows = [
        f"{i / 2 if i in (7, 19, 33, 51) else i},{'?' if i in (11, 12, 40) else i % 5},"
        f"{9 if i in (25, 26) else i % 3},{i}"
        for i in range(60)
    ]
    (tmp_path / "read.csv").write_text("\n".join(["a,b,k,y", *rows, ""]))
    (tmp_path / "table.csv").write_text("k,w\n0,1\n1,2\n2,3\n")

    def make(a: str = "int64", k: str = "int64", source: str = "", stages: str = SCALE) -> Path:
        file = tmp_path / "fine.toml"
        known = {"folder": tmp_path, "a": a, "k": k, "source": source}
        file.write_text(FINE.format(**known, stages=stages.format(folder=tmp_path)))
        return file

    return make


def test_how_a_record_is_read_may_change(fine: Write, headrace: Headrace, tmp_path: Path) -> None:
    """The type of a number, what a missing value looks like, and the file of a lookup; the run
    then goes on so, and refuses a change as ever."""
    stages = (
        '[scrub.full]\nkind = "missing"\ncolumns = ["b"]\nstrategy = "constant"\nvalue = 0.0\n'
        + TABLE
        + SCALE
    )
    code, out, err = headrace("run", fine(stages=stages))
    assert code == 0, err
    assert "51 learned" in out
    nulls = 'null_values = ["?"]'
    mended = fine(a="float64", source=nulls, stages=stages)
    code, _, err = headrace("run", mended)
    assert code == 2
    assert "written with another" in err
    code, out, err = headrace("replay", mended)
    assert code == 0, err
    assert "58 learned" in out
    assert "[source] null_values has changed since the checkpoint" in err
    assert "schema has changed since the checkpoint in" in err
    (tmp_path / "table.csv").write_text("k,w\n0,1.5\n1,2\n2,3\n9,4\n")
    code, out, err = headrace("replay", mended)
    assert code == 0, err
    assert "60 learned" in out
    assert headrace("run", mended)[0] == 0
    assert headrace("run", fine(stages=stages))[0] == 2


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"a": "string"}, "[scrub.standardize]"),
        (
            {
                "stages": '[scrub.last]\nkind = "lag"\ncolumn = "b"\nby = ["k"]\n'
                'time = "a"\nevery = 1\nsteps = [1]\n' + SCALE
            },
            {"k": "float64"},
            "[scrub.last] has learned from column 'k' as int64, and it is float64 now",
        ),
        (
            {"stages": '[scrub.each]\nkind = "standardize_by"\ncolumns = ["a"]\nby = ["k"]\n'},
            {"k": "float64"},
            "[scrub.each] has learned from column 'k' as int64, and it is float64 now",
        ),
    ],
)
def test_what_was_learned_keeps_the_type_of_its_columns(
    before: dict[str, str], after: dict[str, str], said: str, fine: Write, headrace: Headrace
) -> None:
    assert headrace("run", fine(**before))[0] == 0
    code, _, err = headrace("replay", fine(**{**before, **after}))
    assert code == 2
    assert said in err


def test_a_vocabulary_is_not_mended(tmp_path: Path, headrace: Headrace) -> None:
    """The model's weights belong to its codes."""
    (tmp_path / "words").write_text("a\nb\n")
    rows = [f"{'ab'[i % 2]} b,{i % 2}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["t,y", *rows, "a,", ""]))
    file = tmp_path / "words.toml"
    file.write_text(
        f'name = "words"\nfolder = "{tmp_path}"\n[source]\nkind = "files"\n'
        f'path = "{tmp_path}/rows.csv"\n[scrub.tokens]\ncolumns = ["t"]\n'
        f'vocabulary = "{tmp_path}/words"\n[model]\ntarget = "y"\nragged = ["t"]\n'
        "[dead_letters]\nlimit = 1.0\n"
    )
    assert headrace("run", file)[0] == 0
    (tmp_path / "words").write_text("b\na\n")
    code, _, err = headrace("replay", file)
    assert code == 2
    assert "written with another file for stage tokens" in err
