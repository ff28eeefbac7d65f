"""Labels that come later than their rows, from files of their own: each is learned once, with the
score that its row had when it came, or counted for what it is."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from connectors.memory import MemorySource
from engine.config import Pipeline
from engine.interpret import interpret
from engine.loading.sources.label_times import SPANS
from engine.run import Run
from engine.running.loop import Loop
from engine.system import atomic
from engine.types import POSITION, Batch, EndOfStream, Records, Tensors
from engine.versions.store import Versions
from models.learners.linear import LinearLearner
from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "late"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/rows.csv"
[labels]
by = ["id"]
time = "at"
horizon = "2d"
[labels.source]
kind = "files"
path = "{folder}/labels.csv"
[loader]
batch_rows = 64
[scrub.standardize]
columns = ["x"]
[model]
kind = "linear"
target = "fraud"
numeric = ["x"]
classes = ["no", "yes"]
[dead_letters]
limit = 1.0
[checkpoint]
interval_batches = 4
[sink]
kind = "files"
path = "{folder}/out"
"""
MINUTE, DAY = 60_000_000, 86_400_000_000
N = 400
ON_DISK = ('horizon = "2d"', 'horizon = "2d"\nmemory = 1')
CORRECTED = 'on_missing = "no"\ncorrections = "4d"'
Late = Callable[..., Path]
Results = Callable[[], pl.DataFrame]


def rows_of(n: int = N) -> pl.DataFrame:
    """A row every ten minutes."""
    at = pl.Series("at", np.arange(n) * 10 * MINUTE).cast(pl.Datetime("us"))
    x = np.random.default_rng(5).normal(size=n).round(4)
    return pl.DataFrame({"id": np.arange(n), "at": at, "x": x})


def labels_of(rows: pl.DataFrame, delays: Any) -> pl.DataFrame:
    """The label of each row so many microseconds later, in the order of time."""
    fraud = pl.when(pl.col("x") > 0).then(pl.lit("yes")).otherwise(pl.lit("no"))
    late = pl.Series(delays).cast(pl.Duration("us"))
    return rows.select("id", pl.col("at") + late, fraud=fraud).sort("at", maintain_order=True)


@pytest.fixture
def late(tmp_path: Path) -> Late:
    """Writes rows, labels and the pipeline, with texts replaced."""

    def write(rows: pl.DataFrame, labels: pl.DataFrame, *changes: tuple[str, str]) -> Path:
        rows.write_csv(tmp_path / "rows.csv")
        labels.write_csv(tmp_path / "labels.csv")
        text = PIPELINE.format(folder=tmp_path)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        file = tmp_path / "late.toml"
        file.write_text(text)
        return file

    return write


def dirty(rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Rows and labels with delays of 0 to 3 days, and how many of each kind there are."""
    rows = rows_of()
    delays = rng.integers(0, 3 * DAY, N)
    labels = labels_of(rows, delays).filter(pl.col("id") % 10 != 0)  # a tenth never comes
    twice = labels.filter(pl.col("id") % 20 == 1)
    unknown = labels.filter(pl.col("id") % 50 == 2).with_columns(pl.col("id") + N)
    empty = labels.filter(pl.col("id") % 50 == 3).with_columns(fraud=pl.lit(None, pl.String))
    labels = pl.concat([labels, twice, unknown, empty]).sort("at", maintain_order=True)
    in_time = {int(i) for i in np.flatnonzero(delays <= 2 * DAY) if i % 10}
    return rows, labels, {
        "learned": len(in_time),
        "twice": len([i for i in in_time if i % 20 == 1]),
        "unmatched": unknown.height + (N - N // 10 - len(in_time)),
        "empty": empty.height,
    }  # fmt: skip


def test_each_label_is_learned_once_or_counted(
    late: Late, results: Results, tmp_path: Path
) -> None:
    rows, labels, count = dirty(np.random.default_rng(1))
    totals = Run(late(rows, labels)).run().totals
    assert totals.balanced
    assert totals.read == rows.height + labels.height
    assert (totals.learned, totals.matched) == (count["learned"], count["learned"])
    assert totals.reasons["labels", "duplicate"] >= count["twice"]
    assert totals.reasons["collate", "missing_label"] == count["empty"]
    assert totals.expired == N - totals.learned  # the newest label is of days after the last row
    assert totals.waiting == labels.height - totals.matched - totals.rejected
    learned = results()
    assert learned["id"].n_unique() == learned.height == count["learned"]
    known = rows.select("id", fraud_known=pl.col("x") > 0)
    truth = learned.join(known, on="id", how="left")
    assert ((truth["fraud"] == "yes") == truth["fraud_known"]).all()
    letters = pl.read_ndjson(tmp_path / "run" / "dead_letters" / "*.ndjson")
    assert letters.height == totals.rejected
    unmatched = letters.filter(reason="unmatched")["value"].str.json_path_match("$.id")
    assert unmatched.cast(pl.Int64).is_in(range(N, 2 * N)).any()


def test_a_version_says_until_when_its_data_are(late: Late, tmp_path: Path) -> None:
    rows = rows_of()
    labels = labels_of(rows, np.full(N, DAY))
    Run(late(rows, labels, ("[sink]", "[export]\ncompress = false\n[sink]"))).run()
    (at,) = labels.select(pl.col("at").max().dt.epoch("us") / 1e6).row(0)
    assert Versions(tmp_path / "run" / "versions").current().data_time == pytest.approx(at)


def test_interpret_slices_by_how_late_the_label_came(late: Late) -> None:
    """The rows that were held out have the delay of their labels, too."""
    rows = rows_of()
    delays = np.where(np.arange(N) % 3 == 0, DAY, DAY // 24)
    slices = '[evaluation.slices]\nafter_a_day = "_delay > 80000"\n'
    held = f"[export]\ncompress = false\nholdout = 0.5\n{slices}[sink]"
    file = late(rows, labels_of(rows, delays), ("[sink]", held))
    Run(file).run()
    found = interpret(file, repeats=3)
    (named,) = (each for each in found.slices if each.name == "after_a_day")
    assert 0 < named.rows < found.rows
    assert any(each.column == "_delay" for each in found.slices)
    assert not any("reads columns that these rows do not have" in each for each in found.left_out)


@pytest.mark.parametrize(
    "policy",
    [
        *(pytest.param(each, marks=pytest.mark.full) for each in ("", 'on_missing = "no"')),
        CORRECTED,
    ],
)
def test_the_cut_into_batches_changes_nothing(
    policy: str, late: Late, results: Results, tmp_path: Path
) -> None:
    """Labels come minutes and days after their rows: the order in which rows are learned is the
    same, their scores, and the account; also if next to nothing, or some, waits in memory."""
    rows, labels, _ = dirty(np.random.default_rng(2))
    soon = labels_of(rows, np.full(N, MINUTE)).filter(pl.col("id") % 3 == 0)
    labels = pl.concat([labels, soon]).sort("at", maintain_order=True)
    outcomes = []
    for size, memory in ((7, "1B"), (64, "16MiB"), (5_000, "8KiB")):
        file = late(
            rows,
            labels,
            ("batch_rows = 64", f"batch_rows = {size}"),
            ('horizon = "2d"', f'horizon = "2d"\nevery_rows = 16\nmemory = "{memory}"\n{policy}'),
            ('[scrub.standardize]\ncolumns = ["x"]\n', ""),  # learns by the batch
        )
        summary = Run(file).run(fresh=True)
        learned = results().drop(POSITION, strict=False)
        totals = replace(summary.totals, batches=0)
        outcomes.append((learned, summary.report, totals))
    assert outcomes[0][0].height > 200
    for learned, report, totals in outcomes[1:]:
        assert learned.equals(outcomes[0][0])
        assert (report, totals) == outcomes[0][1:]


@pytest.mark.parametrize("size", [8, 5_000])
def test_a_row_is_scored_with_all_labels_older_than_its_step(
    size: int, late: Late, results: Results
) -> None:
    """A label comes before the next row: only those of a step's own rows are unknown."""
    rows = rows_of()
    file = late(
        rows,
        labels_of(rows, np.full(N, MINUTE)),
        ("batch_rows = 64", f"batch_rows = {size}"),
        ('horizon = "2d"', 'horizon = "2d"\nevery_rows = 10'),
    )
    summary = Run(file).run()
    learned = results()
    assert learned["id"].to_list() == list(range(N))
    scores = learned["probability"].to_list()
    assert scores[:10] == [0.5] * 10
    assert 0.5 not in scores[10:]
    assert summary.report["all"]["accuracy"] > 0.9


def test_a_row_keeps_the_score_of_when_it_came(late: Late, results: Results) -> None:
    """All labels come after the last row: no row was scored by a model that had learned."""
    rows = rows_of(200)
    file = late(rows, labels_of(rows, np.full(200, 33 * 60 * MINUTE + 10 * MINUTE)))
    summary = Run(file).run()
    assert summary.totals.learned == 200
    assert results()["probability"].unique().to_list() == [0.5]
    assert summary.report["all"]["accuracy"] == pytest.approx((rows["x"] <= 0).mean())
    assert "last class" not in summary.report["all"]["baselines"]  # none was known

    often = ('horizon = "2d"', 'horizon = "2d"\nevery_rows = 16')
    at_once = late(rows, labels_of(rows, np.zeros(200)), often)
    again = Run(at_once)
    summary = again.run(fresh=True)
    assert results()["probability"].n_unique() > 100
    assert summary.report["all"]["accuracy"] > 0.8


@pytest.mark.parametrize("policy", ["", CORRECTED])
def test_a_row_is_answered_when_it_is_read_and_learned_when_its_label_comes(
    policy: str, late: Late, results: Results
) -> None:
    """Each once, with the score that it is judged by; nothing else changes."""
    rows, labels, _ = dirty(np.random.default_rng(6))
    twice = pl.concat([rows, rows[350:360]])
    often = ('horizon = "2d"', f'horizon = "2d"\nevery_rows = 16\n{policy}')
    usual = Run(late(twice, labels, often)).run()
    learned = results().select("id", "prediction", "probability").unique("id")
    file = late(twice, labels, often, ("[sink]", '[sink]\nanswer = "first"'))
    first = Run(file).run(fresh=True)
    assert first.totals == usual.totals
    assert first.report == usual.report
    answers = results()
    assert answers["id"].to_list() == list(range(N))  # in the order in which they are read
    assert not {"fraud", "_delay"} & set(answers.columns)
    both = answers.join(learned, on="id", suffix="_then")
    assert both.height == learned.height > 200
    assert both["probability"].equals(both["probability_then"], check_names=False)
    assert both["prediction"].equals(both["prediction_then"], check_names=False)


def test_a_row_without_a_finite_score_is_told_when_it_is_read(
    late: Late, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no answer, and is a dead letter when its label comes."""
    rows, predict = rows_of(100), LinearLearner.predict
    gone = rows.filter(pl.col("x") > 1)

    def predicted(self: LinearLearner, tensors: Tensors) -> Any:
        return np.where(tensors.numeric[:, 0] > 1, np.nan, predict(self, tensors))

    monkeypatch.setattr(LinearLearner, "predict", predicted)
    labels = labels_of(rows, np.full(100, MINUTE)).filter(pl.col("id") != gone["id"][0])
    unscaled = ('[scrub.standardize]\ncolumns = ["x"]\n', "")
    totals = Run(late(rows, labels, unscaled, ("[sink]", '[sink]\nanswer = "first"'))).run().totals
    assert 1 < gone.height < 50
    assert totals.counts["labels", "unanswered"] == gone.height
    assert totals.reasons == {("predict", "non_finite"): gone.height - 1}
    assert results()["id"].to_list() == rows.filter(pl.col("x") <= 1)["id"].to_list()


def test_an_answer_before_the_label_cannot_have_it(late: Late, headrace: Headrace) -> None:
    rows = rows_of(20)
    sink = '[sink]\nanswer = "first"\ncolumns = ["id", "fraud"]'
    code, _, err = headrace("check", late(rows, labels_of(rows, np.zeros(20)), ("[sink]", sink)))
    assert code == 2
    assert "[sink] columns" in err
    assert "'fraud'" in err


def test_no_label_is_known_before_it_comes(late: Late, results: Results) -> None:
    """With a delay of 100 rows, a step of 10 rows is scored by a model that knows the labels of
    rows at least 100 earlier, and not many fewer."""
    rows = rows_of(400)
    delay = np.full(400, 100 * 10 * MINUTE)
    often = ('horizon = "2d"', 'horizon = "2d"\nevery_rows = 10')
    Run(late(rows, labels_of(rows, delay), often)).run()
    learned = results().sort("id")
    untrained = learned.filter(probability=0.5)["id"]
    assert untrained.max() is not None
    assert untrained.to_list() == list(range(len(untrained)))
    span = 2 * DAY // SPANS // (10 * MINUTE) + 1  # a label is read up to so many rows later
    assert 100 <= len(untrained) <= 100 + span + 20


@pytest.mark.parametrize("at", [0, N // 2])
@pytest.mark.parametrize("far", ["rows", "labels"])
def test_one_time_far_in_the_future_costs_itself_alone(far: str, at: int, late: Late) -> None:
    rows = rows_of()
    labels = labels_of(rows, np.full(N, DAY))
    future = pl.when(pl.int_range(pl.len()) == at).then(pl.datetime(2099, 1, 1)).otherwise("at")
    if far == "rows":
        rows = rows.with_columns(future.cast(pl.Datetime("us")).alias("at"))
    else:
        labels = labels.with_columns(future.cast(pl.Datetime("us")).alias("at"))
    totals = Run(late(rows, labels)).run().totals
    assert totals.learned == N - 1
    assert totals.counts.get(("labels", "ahead"), 0) >= (at > 0)


def test_labels_whose_clock_is_behind_wait_for_their_rows(late: Late) -> None:
    rows = rows_of(100)
    early = labels_of(rows, np.full(100, -DAY))
    totals = Run(late(rows, early)).run().totals
    assert (totals.learned, totals.expired, totals.waiting) == (100, 0, 0)


def test_rows_that_do_not_fit_into_memory_expire_with_a_warning(
    late: Late, headrace: Headrace
) -> None:
    rows = rows_of(3 * N)
    labels = labels_of(rows, np.full(3 * N, 5 * DAY))
    budget = ("batch_rows = 64", 'batch_rows = 64\nmemory_budget = "64KiB"')
    file = late(rows, labels, ('horizon = "2d"', 'horizon = "10d"'), budget)
    code, out, err = headrace("run", file)
    assert code == 0, err
    account = re.search(r"= (\d+) learned .*?(\d+) expired", out)
    assert account is not None, out
    learned, expired = map(int, account.groups())
    assert learned + expired == 3 * N
    assert learned > 50
    assert expired > 50
    assert err.count("is more than an eighth of [loader] memory_budget") == 1


def test_rows_without_a_label_are_learned_with_another_after_the_horizon(
    late: Late, results: Results, tmp_path: Path
) -> None:
    """Only what is fraud is reported; the rest is not, once two days have passed."""
    rows = rows_of()
    reported = labels_of(rows, np.full(N, DAY)).filter(fraud="yes")
    missing = ('time = "at"', 'time = "at"\non_missing = "no"')
    file = late(rows, reported, missing)
    file.write_text(file.read_text() + '[evaluation.slices]\nreported = "_delay > 3600"\n')
    summary = Run(file).run()
    learned, totals = results(), summary.totals
    yes = learned.filter(fraud="yes")
    assert set(yes["id"]) == set(reported["id"])
    assert yes["_delay"].unique().to_list() == [86_400.0]
    no = learned.filter(fraud="no")
    assert no["_delay"].null_count() == no.height == totals.counts["labels", "on_missing"]
    assert set(no["id"]) == set(rows.filter(pl.col("x") <= 0)["id"][: no.height])
    assert (totals.expired, totals.waiting) == (0, N - learned.height)
    assert summary.report["slices"]["reported"]["rows"] == yes.height
    page = (tmp_path / "run" / "metrics.prom").read_text()
    assert f"headrace_label_delay_seconds_count {float(yes.height)}" in page
    (total,) = re.findall(r"^headrace_label_delay_seconds_sum (.*)$", page, re.MULTILINE)
    assert float(total) == 86_400 * yes.height


def test_a_label_after_the_horizon_corrects_the_one_assumed(late: Late, results: Results) -> None:
    """Assumed after an hour, corrected for two days; a row is evaluated once, when it is sure."""
    rows = rows_of()
    delays = np.where(np.arange(N) % 2, DAY, MINUTE)
    reported = labels_of(rows, delays).filter(fraud="yes")
    policy = 'on_missing = "no"\ncorrections = "2d"\nevery_rows = 32'
    change = ('horizon = "2d"', f'horizon = "1h"\n{policy}')
    summary = Run(late(rows, reported, change)).run()
    totals, learned = summary.totals, results()
    late_ones = set(reported.filter(pl.col("id") % 2 == 1)["id"])
    again = learned.filter(pl.col("id").is_duplicated())
    corrected = set(again["id"])
    assert totals.counts["labels", "corrected"] == totals.added == len(corrected)
    # Of the last step some were not assumed yet when their label came.
    assert {i for i in late_ones if i < N - 64} <= corrected <= late_ones
    twice = again.group_by("id", maintain_order=True).agg("fraud")["fraud"].to_list()
    assert twice == [["no", "yes"]] * len(corrected)
    assert set(learned.filter(fraud="yes")["id"]) == set(reported["id"])
    assert (totals.expired, totals.matched) == (0, reported.height)
    assert totals.learned == totals.counts["labels", "on_missing"] + reported.height
    judged = summary.report["all"]["rows"]
    assert reported.height < judged < N  # not those that may still be corrected


def test_labels_under_other_names_and_types_of_time(late: Late, tmp_path: Path) -> None:
    rows = rows_of(100)
    labels = labels_of(rows, np.full(100, DAY))
    labels = labels.select(payment="id", day=pl.col("at").dt.date(), fraud="fraud")
    file = late(
        rows,
        labels,
        ('by = ["id"]\ntime = "at"', 'by = {id = "payment"}\ntime = "at"\nlabel_time = "day"'),
    )
    assert Run(file).run().totals.learned == 100


def test_two_key_columns_and_a_regression(late: Late) -> None:
    rows = rows_of(100).with_columns(shop=pl.col("id") % 3, id=pl.col("id") // 3)
    labels = rows.select("id", "shop", pl.col("at") + pl.duration(hours=1), fraud=pl.col("x") * 2)
    file = late(
        rows,
        labels,
        ('by = ["id"]', 'by = ["shop", "id"]'),
        ('\nclasses = ["no", "yes"]', ""),
    )
    run = Run(file)
    assert run.run().totals.learned == 100
    assert run.evaluation.report()["all"]["mae"] < 2


def test_quantiles_wait_for_their_label(late: Late, results: Results) -> None:
    """Each is judged as it was served when its row came."""
    rows = rows_of(200)
    labels = rows.select("id", pl.col("at") + pl.duration(hours=1), fraud=pl.col("x") * 2)
    file = late(
        rows,
        labels,
        ('\nclasses = ["no", "yes"]', '\n[train]\nloss = "quantile"\nquantiles = [0.1, 0.5]'),
        ('kind = "linear"', "layers = [4]"),
    )
    run = Run(file)
    assert run.run().totals.learned == 200
    served, target = results().sort("id"), labels.sort("id")["fraud"]
    figures = run.evaluation.report()["all"]
    below = (target <= served["prediction_q10"]).mean()
    assert figures["quantiles"]["q10"]["below"] == pytest.approx(below)
    assert figures["mae"] == pytest.approx((target - served["prediction"]).abs().mean())


def test_held_out_rows_have_their_label(late: Late, tmp_path: Path) -> None:
    """A version is compressed and judged on rows with the labels that came later."""
    rows = rows_of(500)
    file = late(rows, labels_of(rows, np.full(500, DAY)))
    file.write_text(file.read_text() + "[export]\nholdout = 0.3\ncompress = false\n")
    run = Run(file)
    totals = run.run().totals
    assert totals.learned + totals.predicted == 500
    held = run.parts.judging.holdout
    assert held is not None
    frame = held.frame()
    assert frame is not None
    assert frame.height == totals.predicted > 100
    assert frame["fraud"].null_count() == 0
    assert (tmp_path / "run" / "model.onnx").is_file()


def test_a_stopped_run_goes_on_where_it_was(late: Late, results: Results) -> None:
    rows, labels, _ = dirty(np.random.default_rng(3))
    file = late(rows, labels)
    whole = Run(file).run().totals
    want = results()
    file = late(rows, labels, ON_DISK)
    for after in (3, 11):

        def watch(loop: Loop, _: Batch, after: int = after) -> None:
            if loop.totals.batches == after:
                loop.stop()

        assert Run(file, watch=watch).run(fresh=after == 3).stopped
    totals = Run(file).run().totals
    assert results().drop(POSITION, strict=False).equals(want.drop(POSITION, strict=False))
    assert (totals.reasons, totals.expired, totals.waiting) == (
        whole.reasons, whole.expired, whole.waiting,
    )  # fmt: skip


def test_a_missing_file_of_waiting_rows_is_told_before_anything_is_read(
    late: Late, headrace: Headrace, tmp_path: Path
) -> None:
    rows = rows_of()
    file = late(rows, labels_of(rows, np.full(N, DAY)), ON_DISK)

    def watch(loop: Loop, _: Batch) -> None:
        if loop.totals.batches == 8:
            loop.stop()

    assert Run(file, watch=watch).run().stopped
    waiting = sorted((tmp_path / "run" / "checkpoints").glob("rows-*.arrows"))
    assert waiting
    for path in waiting:
        path.unlink()
    for command in ("check", "run"):
        code, out, err = headrace(command, file)
        said = f"{out}{err}"
        assert code == 2, said
        assert said.count("No checkpoint in ") == 1
        assert f"({waiting[0].name} with rows or labels that wait for each other" in said
        assert "start over without it by --fresh" in said
    assert Run(file).restore()  # what is learned needs none of them
    assert headrace("run", file, "--fresh")[0] == 0


def test_a_full_disk_ends_the_run_and_loses_nothing(
    late: Late, headrace: Headrace, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels, _ = dirty(np.random.default_rng(6))
    code, _, err = headrace("run", late(rows, labels))
    assert code == 0, err
    want = results().drop(POSITION, strict=False)
    file = late(rows, labels, ON_DISK)
    written = atomic.write_parts
    left = [3]

    def full(path: Path, parts: Any, **options: Any) -> Path:
        if path.suffix == ".arrows":
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, parts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_parts", full)
        code, _, err = headrace("run", file, "--fresh")
    assert code == 1, err
    assert err.count("No space left on device; free some space") == 1
    assert "Traceback" not in err
    assert headrace("run", file)[0] == 0
    assert results().drop(POSITION, strict=False).equals(want)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('by = ["id"]', "by = []"), "by"),
        (('by = ["id"]', 'by = ["ids"]'), "[labels] by, in [labels.source], needs column 'ids'"),
        (('by = ["id"]', 'by = ["x"]'), "[labels] by, in [labels.source], needs column 'x'"),
        (('by = ["id"]', 'by = {at = "id"}'), "[labels] by joins 'at' of the rows"),
        (
            ('time = "at"', 'time = "x"\nlabel_time = "at"'),
            "a datetime, date or integer in column 'x' of [source], got float64: declare it",
        ),
        (
            ('time = "at"', 'time = "at"\nlabel_time = "fraud"'),
            "in column 'fraud' of [labels.source], got string: declare it",
        ),
        (('time = "at"', 'time = "id"\nlabel_time = "at"'), "labels datetime: declare both"),
        (('horizon = "2d"', 'horizon = "soon"'), "expects a duration"),
        (('horizon = "2d"', "horizon = 7"), "expects a duration"),
        (('horizon = "2d"', 'horizon = "0s"'), "[labels] expects a 'horizon' of 1 to"),
        (('horizon = "2d"', 'horizon = "2d"\nlateness = "-1d"'), "expects a duration"),
        (('horizon = "2d"', 'horizont = "2d"'), "has no key 'horizont'"),
        (
            ('horizon = "2d"', 'horizon = "2d"\nmemory = "200MiB"'),
            "[labels] memory is 209,715,200 bytes, and half of [loader] memory_budget is "
            "134,217,728: lower it, or raise the budget.",
        ),
        (('horizon = "2d"', 'horizon = "2d"\non_missing = "maybe"'), "on_missing"),
        (('horizon = "2d"', 'horizon = "2d"\ncorrections = "3d"'), "on_missing"),
        (
            ('horizon = "2d"', 'horizon = "2d"\non_missing = "no"\ncorrections = "1d"'),
            "a longer time than the horizon",
        ),
        (('target = "fraud"', 'target = "frau"'), "needs column 'frau'"),
        (('target = "fraud"', 'target = "x"'), "'x'"),
        (
            ('"{folder}/labels.csv"', '"{folder}/nothing.csv"'),
            "[labels.source] path '{folder}/nothing.csv'",
        ),
        (('"{folder}/rows.csv"', '"{folder}/none.csv"'), "[source] path '{folder}/none.csv'"),
        (('"files"\npath = "{folder}/labels', '"mix"\npath = "{folder}/labels'), "mix"),
        (("batch_rows = 64", "batch_rows = 64\nshuffle_rows = 100"), "shuffle_rows"),
        (('rows.csv"', 'rows.csv"\nepochs = 2'), "epochs"),
        (('classes = ["no", "yes"]', 'classes = "grow"'), "grow"),
        (("[labels.source]\n", "[other]\n"), "source"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_one_sentence(
    change: tuple[str, str], sentence: str, late: Late, headrace: Headrace, tmp_path: Path
) -> None:
    rows = rows_of(50)
    folder = str(tmp_path)
    change = change[0].replace("{folder}", folder), change[1].replace("{folder}", folder)
    file = late(rows, labels_of(rows, np.full(50, DAY)), change)
    code, out, err = headrace("run", file)
    assert code == 2, (out, err)
    assert sentence.replace("{folder}", folder) in err, err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_labels_that_were_changed_name_their_own_table(late: Late, headrace: Headrace) -> None:
    rows = rows_of(50)
    file = late(rows, labels_of(rows, np.full(50, DAY)))
    assert headrace("run", file)[0] == 0
    late(rows, labels_of(rows, np.full(50, DAY // 2)))
    code, _, err = headrace("run", file)
    assert code == 2, err
    assert "[labels.source] " in err
    assert "[source]" not in err


def test_rows_that_all_still_wait_are_no_failure(
    late: Late, headrace: Headrace, tmp_path: Path
) -> None:
    rows = rows_of(50)
    labels = labels_of(rows, np.full(50, DAY)).head(1)
    file = late(rows, labels.with_columns(at=pl.lit(None, pl.Datetime("us"))), (
        '"{folder}/labels.csv"\n'.replace("{folder}", str(tmp_path)),
        f'"{tmp_path}/labels.csv"\n[labels.source.schema]\nat = "datetime"\n',
    ), ("limit = 1.0", "limit = 0.5"))  # fmt: skip
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert "51 read = 1 rejected + 50 waiting" in out
    assert "Nothing is learned yet: 50 rows and labels wait" in err
    assert "nan" not in err


def test_keys_that_never_meet_are_told(late: Late, headrace: Headrace) -> None:
    rows = rows_of(50)
    labels = labels_of(rows, np.full(50, DAY)).with_columns(pl.col("id") + 1_000)
    file = late(rows, labels)
    code, out, _ = headrace("check", file)
    assert code == 0, out
    assert "0 of 50 sampled labels belong to a sampled row ([labels] by)." in out
    file.write_text(file.read_text().replace("[dead_letters]\nlimit = 1.0\n", ""))
    code, _, err = headrace("run", file)
    assert code == 0, err
    assert "100 rows and labels wait for each other" in err
    assert "compare the keys ([labels] by)" in err


def test_figures_without_any_label_are_said_to_be_of_none(late: Late, headrace: Headrace) -> None:
    rows = rows_of()
    head = labels_of(rows, np.full(N, DAY)).head(0)
    typed = '[labels.source.schema]\nid = "int64"\nat = "datetime"\nfraud = "string"\n[loader]'
    file = late(rows, head, ('"2d"', '"1m"\non_missing = "no"'), ("[loader]", typed))
    code, out, err = headrace("check", file)
    assert code == 0, err
    assert "[labels.source] has no labels in the sample" in out
    code, out, err = headrace("run", file)
    assert code == 0, err
    (learned,) = re.findall(r"(\d+) learned", out)
    assert f"No label has come: all {learned} rows took that of [labels] on_missing" in err


def test_rows_that_all_expire_end_the_run(late: Late, headrace: Headrace) -> None:
    rows = rows_of()
    labels = labels_of(rows, np.full(N, DAY)).with_columns(pl.col("id") + 1_000)
    file = late(rows, labels, ("[dead_letters]\nlimit = 1.0\n", ""), ('"2d"', '"1m"'))
    file.write_text(file.read_text() + '[dead_letters]\nexpected = ["unmatched"]\n')
    code, _, err = headrace("run", file)
    assert code == 3, err
    assert "none of 800 rows and labels could be learned" in err
    assert "rows expired without one" in err


def test_labels_that_stop_are_told(late: Late, headrace: Headrace) -> None:
    rows = rows_of(1_500)
    labels = labels_of(rows, np.zeros(1_500)).filter(pl.col("id") < 10)
    code, out, err = headrace("run", late(rows, labels))
    assert code == 0, err
    assert "10 learned" in out
    assert err.count("rows in sequence have expired without a label") == 1


def test_a_pipeline_that_serves_leaves_labels_of_its_base_alone(
    late: Late, headrace: Headrace, tmp_path: Path
) -> None:
    rows = rows_of(300)
    file = late(rows, labels_of(rows, np.full(300, DAY)))
    file.write_text(file.read_text() + "[export]\ncompress = false\n")
    assert headrace("run", file)[0] == 0
    serve = tmp_path / "serve.toml"
    serve.write_text(
        f'name = "serve"\nbase = "late.toml"\nfolder = "{tmp_path}/serving"\n'
        f'[infer]\nmodel = "{tmp_path}/run/model.onnx"\n[sink]\npath = "{tmp_path}/served"\n'
    )
    code, out, err = headrace("run", serve)
    assert code == 0, err
    assert "300 read = 300 predicted" in out


def test_a_label_without_a_model_is_refused() -> None:
    table = {
        "name": "clean",
        "source": {"kind": "files", "path": "rows.csv"},
        "labels": {"by": ["id"], "time": "at", "horizon": "1d", "source": {"kind": "files"}},
    }
    with pytest.raises(Exception, match=r"\[labels\] in the pipeline needs a \[model\]"):
        Run(Pipeline.of(table))


class Endless(MemorySource):
    """Rows of a list, and then silence."""

    def unbounded(self) -> bool:
        return True

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        try:
            return super().read(max_rows, max_bytes, timeout)
        except EndOfStream:
            threading.Event().wait(timeout)
            return None


def test_a_topic_that_is_silent_ends_a_step(tmp_path: Path) -> None:
    rows = rows_of(20)

    def endless(frame: pl.DataFrame) -> dict[str, Any]:
        return {"kind": f"{__name__}:Endless", "items": frame.to_dicts()}

    labels = {"by": ["id"], "time": "at", "horizon": "2d"}
    table = {
        "name": "late",
        "folder": str(tmp_path),
        "source": endless(rows),
        "labels": {**labels, "source": endless(labels_of(rows, np.zeros(20)))},
        "model": {"kind": "linear", "target": "fraud", "numeric": ["x"], "classes": ["no", "yes"]},
    }

    def watch(loop: Loop, _: Batch) -> None:
        if loop.totals.learned == 20:
            loop.stop()

    assert Run(Pipeline.of(table), watch=watch).run().totals.waiting == 0
