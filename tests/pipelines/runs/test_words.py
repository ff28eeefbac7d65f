"""What a run says of itself: a figure is named, and the same wherever the same thing is meant."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from engine.quality.headline import headline
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from engine.types.plural import counted
from tests.pipelines.conftest import Headrace, Rows, Small

BINARY = (
    'target = "y"\n', 'target = "label"\ntask = "binary"\nclasses = ["no", "yes"]\n'
)  # fmt: skip


def labelled(rows: Rows, n: int, share: float = 0.7) -> pl.DataFrame:
    """Rows whose label is no more than a coin's: the model wins by luck alone."""
    frame = rows(n)
    coin = pl.int_range(pl.len()).hash(7) % 1_000 < round(1_000 * share)
    return frame.with_columns(label=pl.when(coin).then(pl.lit("no")).otherwise(pl.lit("yes")))


def binary(small: Small, data: Path) -> Path:
    return small(data, BINARY, ('y = "float64"\n', 'label = "string"\n'))


@pytest.mark.parametrize("n", [3, 400])
def test_a_baseline_has_one_figure_on_a_screen(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path, n: int
) -> None:
    frame = labelled(rows, n, 0.97)
    frame.write_csv(tmp_path / "data.csv")
    code, out, err = headrace("run", binary(small, tmp_path / "data.csv"))
    assert code == 0, err
    (row,) = re.findall(r"│ all +│ +(\S+) │ +(\S+) │ +(\S+) │", out)
    shown = dict(zip(("learned", "majority class", "last class"), row, strict=True))
    pattern = r"The baseline '(.+)' is no worse than the model: accuracy (\S+) against (\S+), over"
    share = (
        r"most frequent class is no worse than the model: it has (\S+) of all ([\d,]+) rows, and"
    )
    if said := re.search(pattern, out):
        assert float(said[2]) == pytest.approx(float(shown[said[1]]), abs=1e-4)
        assert float(said[3]) == pytest.approx(float(shown["learned"]), abs=1e-4)
    else:  # a share of all rows is no baseline of the table, and is not called one
        found = re.search(share, out)
        assert found is not None, out
        most = max(frame["label"].value_counts()["count"])
        assert float(found[1]) == pytest.approx(most / n, abs=1e-4)
        assert int(found[2]) == n


def test_the_line_while_it_runs_is_over_the_newest_rows_only(
    rows: Rows, small: Small, tmp_path: Path
) -> None:
    """First 'no' alone, then 'yes' alone: over the newest rows the majority is always wrong."""
    frame = rows(1_200).with_columns(
        label=pl.when(pl.col("n") < 800).then(pl.lit("no")).otherwise(pl.lit("yes"))
    )
    frame.write_csv(tmp_path / "data.csv")
    file = binary(small, tmp_path / "data.csv")
    file.write_text(file.read_text().replace("window = 1000", "window = 200"))
    said: list[str] = []

    def watch(loop: Loop, batch: Batch) -> None:
        said.append(headline(run.evaluation.report()))

    run = Run(file, watch=watch)
    run.run()
    window = run.evaluation.report()["window"]
    assert window["baselines"]["majority class"] == {"accuracy": 0.0, "rows": 200}
    assert window["baselines"]["last class"] == {"accuracy": 1.0, "rows": 200}
    shown = f"newest rows: accuracy {window['accuracy']:.4g} (last class: 1)"
    assert said[-1] == shown


# ------------------------------------------------------------------------- before it has learned


def test_gaps_filled_before_anything_was_learned_are_told(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path,
    counted: Callable[[], dict[str, float]],
) -> None:  # fmt: skip
    frame = rows(1_000).with_columns(a=pl.when(pl.col("n") < 150).then(None).otherwise("a"))
    frame.write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv")
    early = 100 + frame["a"][100:200].null_count()  # two batches, the second with the first value
    code, _, err = headrace("run", file)
    assert code == 0, err
    assert f"[scrub.missing] filled {early} values with 0" in err
    assert "before it had learned a value" in err
    assert counted()["headrace_filled_before_learning_total"] == early
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["counted"]["missing"] == {
        "filled": frame["a"].null_count(), "filled_before_learning": early,
    }  # fmt: skip
    code, _, err = headrace("run", file)  # nothing new: told once
    assert (code, "filled before" in err, "before it had learned" in err) == (0, False, False)
    code, _, err = headrace("run", file, "--fresh", "--set", "scrub.missing.value=0.5")
    assert (code, "before it had learned" in err) == (0, False)


def test_check_says_what_a_first_batch_counts(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path
) -> None:
    rows(300).with_columns(key="k" + pl.col("n").cast(pl.String)).write_csv(tmp_path / "data.csv")
    code, out, _ = headrace("check", small(tmp_path / "data.csv"))
    assert code == 0
    said = " ".join(out.split())
    assert "unknown 292" in said  # eight values get a code
    assert "categories knows nothing yet, so new values are unknown; in a run" in said
    outliers = '[scrub.outliers]\ncolumns = ["b"]\n[scrub.missing]'
    file = small(tmp_path / "data.csv", ("[scrub.missing]", outliers))
    said = " ".join(headrace("check", file)[1].split())
    assert "outliers, categories know nothing yet, so outliers stay as they are and new" in said
    assert "gaps" not in said


# ------------------------------------------------------------------------------- one row, two rows

MANY = re.compile(
    r"(?<![\d.,])1 (rows|records|values|columns|files|labels|classes|steps|parts|are|have)\b"
)


@pytest.mark.parametrize("n", [1, 2])
def test_one_is_no_plural(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path, n: int
) -> None:
    """Everything that the commands say of one row, and of two."""
    data = tmp_path / "data.csv"
    rows(n).with_columns(a=None).write_csv(data)
    file = small(data)
    said = [headrace(command, *more) for command, *more in (
        ("check", file), ("run", file), ("explore", data), ("explore", file),
        ("profile", file, "--seconds", "1", "--no-trials"),
    )]  # fmt: skip
    for code, out, err in said:
        assert code == 0, out + err
        assert not MANY.search(out + err), MANY.search(out + err)
    (tmp_path / "data.csv").write_text("a,b,n,key,y\n1,2,3,e,x\n" + "1,2,3,e,4.0\n" * (n - 1))
    for command in ("check", "run --fresh", "explore"):
        name, *more = command.split()
        _, out, err = headrace(name, file, *more)
        assert not MANY.search(out + err), MANY.search(out + err)


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1_000, "1,000 rows")]
)
def test_counted(n: int, text: str) -> None:
    assert counted(n, "row") == text
    assert counted(n, "class", "classes").split()[1] == ("class" if n == 1 else "classes")


def test_labels_are_spelt_as_the_classes_are(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path
) -> None:
    rows(40).with_columns(label=pl.col("n") % 2 == 0).write_csv(tmp_path / "data.csv")
    file = small(
        tmp_path / "data.csv",
        ('target = "y"\n', 'target = "label"\ntask = "binary"\nclasses = ["false", "maybe"]\n'),
        ('y = "float64"\n', 'label = "bool"\n'),
    )
    code, out, _ = headrace("check", file)
    assert code == 2
    said = " ".join(out.split())
    assert "have another label in 'label': 'true' (20). A run rejects such rows as unknown" in said
    assert said.endswith(f"{file.name} is not ready to run: look at what is marked '!' above.")


# ----------------------------------------------------------------------------------- who set it


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nosuch.key=1", "--set nosuch.key: a pipeline has no key 'nosuch'. Known: augment, base"),
        ("sorce.path=x", "--set sorce.path: a pipeline has no key 'sorce'. Did you mean 'source'?"),
        ("batch_rows=3", "--set batch_rows: a pipeline has no key 'batch_rows'. 'batch_rows' is a"),
        ("loader.batch_row=1", "--set loader.batch_row: [loader] has no key 'batch_row'. Did you"),
        ("loader.batch_rows=x", "--set loader.batch_rows: expected a whole number >= 1"),
        ("scrub.missing.valu=1", "--set scrub.missing.valu: [scrub.missing] has no key 'valu'."),
        ("model.lr=1", "--set model.lr: [model] has no key 'lr'."),
        ("train.lr=fast", "--set train.lr: expected "),
        ("name=a b", "--set name: expected text like"),
    ],
)
def test_what_was_set_is_blamed_and_not_the_file(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path, word: str, sentence: str
) -> None:
    rows(20).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv")
    code, _, err = headrace("check", file, "--set", word)
    assert code == 2
    assert err.startswith(f"headrace: {sentence}"), err
    assert str(file) not in err


def test_a_variable_is_blamed_and_its_value_is_not_shown(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(20).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv")
    monkeypatch.setenv("HEADRACE_LOADER__BATCH_ROW", "8")
    assert headrace("check", file)[2].startswith(
        "headrace: HEADRACE_LOADER__BATCH_ROW: [loader] ha"
    )
    monkeypatch.delenv("HEADRACE_LOADER__BATCH_ROW")
    err = headrace("check", file, "--set", "source.passwrd=hunter2")[2]
    assert err.startswith("headrace: --set source.passwrd: [source] has no key 'passwrd'")
    assert "hunter2" not in err
    file.write_text(file.read_text().replace("batch_rows = 100", "batch_rows = 0"))
    assert f"[loader] in {file}: expected" in headrace("check", file)[2]  # the file's own mistake


def test_a_model_that_fits_no_memory_says_how_much_it_asked_for(
    headrace: Headrace, small: Small, rows: Rows, tmp_path: Path
) -> None:
    data = tmp_path / "rows.csv"
    rows(20).write_csv(data)
    layers = "model.layers=[100000000,100000000]"
    code, _, err = headrace("run", small(data), "--set", layers)
    assert code == 1
    assert re.search(
        r"^headrace: \[model\] asked for more memory than there is \([\d,]{6,} GiB at once\)",
        err,
        re.M,
    )
