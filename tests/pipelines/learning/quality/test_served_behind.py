"""A stage that a model was trained behind is the same where it serves, or the run is refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.conftest import Headrace

HEAD = """
name = "{name}"
folder = "{place}/{name}"
[source]
kind = "files"
path = "{place}/{name}.csv"
"""
LEARN = """
[model]
kind = "linear"
task = "regression"
target = "y"
numeric = ["b"]
[export]
compress = false
"""
SERVE = """
[infer]
model = "{place}/learn/model.onnx"
[sink]
kind = "files"
path = "{place}/out"
"""


SQRT = 'kind = "derive"\ncolumns = {b = "sqrt(a)"}'
DRIFT = 'kind = "derive"\ncolumns = {b = "sqrt(a)"}\n[scrub.moved]\nkind = "drift"\ncolumns = ["b"]'


@pytest.mark.parametrize(
    ("trained", "here", "refused"),
    [
        (SQRT, SQRT.replace("(a)", "(a + 1)"), "[scrub.late] has columns = {'b': 'sqrt(a + 1)'}"),
        (SQRT, SQRT, None),
        (DRIFT, DRIFT + "\nlog = false", None),
    ],
    ids=["another", "the same", "neutral"],
)
def test_settings_that_decide_a_value(
    headrace: Headrace, tmp_path: Path, trained: str, here: str, refused: str | None
) -> None:
    frame = pl.DataFrame({"a": [float(n) for n in range(64)], "y": [n / 2 for n in range(64)]})
    frame.write_csv(tmp_path / "learn.csv")
    frame.drop("y").write_csv(tmp_path / "serve.csv")
    for name, stage, text in (("learn", trained, LEARN), ("serve", here, SERVE)):
        place = {"name": name, "place": tmp_path}
        (tmp_path / f"{name}.toml").write_text(
            f"{HEAD.format(**place)}[scrub.late]\n{stage}\n{text.format(**place)}"
        )
    code, _, err = headrace("run", tmp_path / "learn.toml")
    assert code == 0, err
    code, _, err = headrace("run", tmp_path / "serve.toml")
    assert code == (0 if refused is None else 2), err
    assert refused is None or refused in err


def served_behind(place: Path, stage: str, model: str) -> None:
    """Write two pipelines: one learns behind the stage, one serves behind it."""
    for name, text in (("learn", model), ("serve", SERVE)):
        given = {"name": name, "place": place}
        (place / f"{name}.toml").write_text(
            f"{HEAD.format(**given)}[scrub.past]\n{stage}\n"
            f"{text.format(**given)}\n[dead_letters]\nlimit = 1.0\n"
        )


def test_a_stage_that_begins_without_a_past_says_so_once(
    headrace: Headrace, tmp_path: Path
) -> None:
    """Not where it resumes, where the model learns, or where the stage needs no past."""
    n = range(64)
    frame = pl.DataFrame({"n": n, "k": [i % 2 for i in n], "a": [i % 9 / 9 for i in n]})
    frame.with_columns(y=pl.col("a") / 2).write_csv(tmp_path / "learn.csv")
    frame.write_csv(tmp_path / "serve.csv")
    sentence = "[scrub.past]: no row is known yet, and the model of [infer] was trained behind"
    lag = 'kind = "lag"\ncolumn = "a"\nby = ["k"]\ntime = "n"\nevery = 2\nsteps = [1]\n'
    served_behind(tmp_path, lag, LEARN.replace('"b"', '"a", "a_lag_1"'))
    code, _, err = headrace("run", tmp_path / "learn.toml")
    assert (code, sentence in err) == (0, False), err
    code, _, err = headrace("run", tmp_path / "serve.toml")
    assert (code, err.count(sentence)) == (0, 1), err
    code, _, err = headrace("run", tmp_path / "serve.toml")
    assert (code, sentence in err) == (0, False), err


def test_rows_as_they_were_before_a_missing_stage_are_refused(
    headrace: Headrace, tmp_path: Path
) -> None:
    """Text of which the model has learned lists: no row of it could be answered."""
    rows = pl.DataFrame({"t": ["good day", "bad day"] * 32, "y": [1, 0] * 32})
    rows.write_csv(tmp_path / "learn.csv")
    model = LEARN.replace('kind = "linear"\ntask = "regression"\n', "layers = [4]\n").replace(
        'numeric = ["b"]', 'sparse = ["t"]'
    )
    served_behind(tmp_path, 'kind = "tokens"\ncolumns = ["t"]\nsize = 64\n', model)
    code, _, err = headrace("run", tmp_path / "learn.toml")
    assert code == 0, err
    model_file, data = tmp_path / "learn" / "model.onnx", tmp_path / "learn.csv"
    words = ("predict", model_file, "--input", data, "--output", tmp_path / "out")
    code, _, err = headrace(*words)
    assert code == 2
    assert "learned column 't' as list[int64], as [scrub.past] left it, and the source" in err
    assert option_in(err) == 'scrub.past={kind = "tokens", columns = ["t"], size = 64}'
    code, _, err = headrace(*words, "--set", option_in(err))
    assert code == 0, err


def option_in(sentence: str) -> str:
    """What a sentence advises behind --set, as a shell reads it."""
    words = shlex.split(sentence[sentence.rindex("--set ") :])
    return words[1].removesuffix(",")


@pytest.mark.parametrize(
    ("made", "source"),
    [
        ("a = \"CAST(REPLACE(a, '%', '') AS DOUBLE)\"", "has it as string"),
        ('b = "LENGTH(a)"', "does not have it"),
    ],
)
def test_columns_that_a_missing_stage_makes_are_named(
    headrace: Headrace, tmp_path: Path, made: str, source: str
) -> None:
    """The run that exports says so too; the advice, as it stands, mends it."""
    rows = pl.DataFrame({"a": [f"{n}%" for n in range(64)], "y": range(64)})
    rows.write_csv(tmp_path / "learn.csv")
    served_behind(
        tmp_path, f"kind = 'derive'\ncolumns = {{{made}}}", LEARN.replace('"b"', f'"{made[0]}"')
    )
    code, _, err = headrace("run", tmp_path / "learn.toml")
    assert code == 0, err
    assert "model.onnx does not contain [scrub.past]: a pipeline with [infer]" in err
    model_file, data = tmp_path / "learn" / "model.onnx", tmp_path / "learn.csv"
    words = ("predict", model_file, "--input", data, "--output", tmp_path / "out")
    code, _, err = headrace(*words)
    assert code == 2
    assert f"MODEL learned column '{made[0]}' as " in err
    assert f"as [scrub.past] left it, and the source {source}: add it to a pipeline" in err
    code, _, err = headrace(*words, "--set", option_in(err))
    assert code == 0, err


def test_values_that_a_served_file_fills_are_counted(headrace: Headrace, tmp_path: Path) -> None:
    """At the end, by column, and in the metrics; a renamed column is reported."""
    rows = pl.DataFrame({"b": [n % 9 / 9 for n in range(120)], "y": [n % 9 for n in range(120)]})
    rows.write_csv(tmp_path / "learn.csv")
    served_behind(tmp_path, 'kind = "missing"\ncolumns = ["b"]\n', LEARN)
    code, _, err = headrace("run", tmp_path / "learn.toml")
    assert code == 0, err
    rows.select(b=pl.lit(None), B="b").write_csv(tmp_path / "new.csv")
    model, out = tmp_path / "learn" / "model.onnx", tmp_path / "out"
    code, said, err = headrace("predict", model, "--input", tmp_path / "new.csv", "--output", out)
    assert code == 0, err
    assert "counted by stages: predict: missing b 120" in said
    assert err.count("Column 'b' has no value in the last 120 rows, where 'B' has") == 1
    metrics = (out / ".headrace" / "metrics.prom").read_text().splitlines()
    assert "headrace_missing_values_total 120.0" in metrics
