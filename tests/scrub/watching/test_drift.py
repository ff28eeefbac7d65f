"""Detectors of drift against River's, row by row; and stages that start anew."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift as untyped

from engine.observing.metrics import METRICS
from engine.scrub.base import DETECTORS
from engine.scrub.watching.detectors import Adwin, Detector, PageHinkley, Psi
from engine.types import Batch, UserError
from tests.size import examples

NAN = math.nan
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
Column = np.ndarray[Any, np.dtype[np.float64]]
drift: Any = untyped


def streams() -> dict[str, Column]:
    rng = np.random.default_rng(11)
    return {
        "steps": np.concatenate([rng.normal(m, 1, 3_000) for m in (0, 0.5, 0.5, 3, 0)]),
        "shares": np.concatenate([(rng.random(4_000) < p) * 1.0 for p in (0.1, 0.3, 0.1)]),
        "ramp": np.linspace(0, 5, 12_000) + rng.normal(0, 1, 12_000),
        "spread": np.concatenate([rng.normal(0, s, 3_000) for s in (1, 5, 1)]),
        "still": rng.random(20_000),
    }


def rows_of(detector: Any, column: Column, size: int = 777) -> list[int]:
    """Rows at which it detects drift in the column, cut into batches."""
    found = []
    for at in range(0, len(column), size):
        detector, here = detector.update(pl.DataFrame({"x": column[at : at + size]}))
        found += [at + row for _, row in here]
    return found


def rivers(detector: Any, column: Column) -> list[int]:
    found = []
    for row, value in enumerate(column.tolist()):
        detector.update(value)
        if detector.drift_detected:
            found.append(row)
    return found


@pytest.mark.parametrize("name", streams())
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adwin.empty(1), drift.ADWIN()),
        (Adwin.empty(1, confidence=0.05, clock=1), drift.ADWIN(delta=0.05, clock=1)),
        (Adwin.empty(1, buckets=9), drift.ADWIN(max_buckets=9)),
        (PageHinkley.empty(1), drift.PageHinkley()),
        (
            PageHinkley.empty(1, slack=0.05, threshold=20.0, keep=1.0, least=90),
            drift.PageHinkley(min_instances=90, delta=0.05, threshold=20, alpha=1),
        ),
    ],
    ids=["adwin", "adwin, each row", "adwin, 9 buckets", "page_hinkley", "page_hinkley, no fading"],
)
def test_drift_is_found_at_rivers_rows(name: str, ours: Detector, theirs: Any) -> None:
    column = streams()[name]
    wanted = rivers(theirs.clone(), column)
    assert rows_of(ours, column) == wanted
    assert wanted or name in ("still", "spread")


def test_a_warmed_detector_does_not_depend_on_the_unit() -> None:
    column = streams()["steps"]
    for detector in (Adwin.empty(1, warmup=200), PageHinkley.empty(1, slack=0.25, warmup=200)):
        found = rows_of(detector, column)
        assert len(found) >= 3
        assert rows_of(detector, 1_024 * column - 4_096) == found


DETECT: dict[str, Callable[[int], Detector]] = {
    "adwin": lambda n: Adwin.empty(n, clock=4, warmup=10),
    "page_hinkley": lambda n: PageHinkley.empty(n, threshold=5.0, least=5, warmup=3),
    "psi": lambda n: Psi.empty(n, window=25, bins=4),
}


@pytest.mark.parametrize("kind", DETECT)
@settings(max_examples=examples(30), deadline=None)
@given(sizes=st.lists(st.integers(0, 120), max_size=8), seed=st.integers(0, 50))
def test_cuts_do_not_matter(kind: str, sizes: list[int], seed: int, same: Any) -> None:
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.normal(0, 4, 8), 50)
    columns = {"x": level + rng.normal(0, 1, 400), "y": rng.random(400)}
    frame = pl.DataFrame(columns).with_columns(
        pl.when(pl.Series(rng.random(400) > 0.1)).then(pl.col("x")), pl.col("y").cast(pl.Float32)
    )
    whole, found = DETECT[kind](2).update(frame)
    assert found
    detector, ours = DETECT[kind](2), []
    for start, stop in pairwise([0, *np.minimum(np.cumsum(sizes), 400).tolist(), 400]):
        detector, here = detector.update(frame[start:stop])
        ours += [(column, row + start) for column, row in here]
    assert sorted(ours) == sorted(found)
    assert same(detector.snapshot(), whole.snapshot())


@pytest.mark.parametrize("kind", DETECT)
def test_what_is_no_number_is_passed_over(kind: str) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate((rng.normal(0, 1, 300), rng.normal(9, 1, 300)))
    full = DETECT[kind](1).update(pl.DataFrame({"x": x}))[1]
    holes = np.full(1_200, NAN)
    holes[::2] = x
    holes[1::4] = math.inf
    found = DETECT[kind](1).update(pl.DataFrame({"x": holes}))[1]
    if kind == "psi":
        assert found
    else:
        assert found == [(column, 2 * row) for column, row in full]


def test_psi_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    reference, now = rng.normal(0, 1, 1_000), rng.normal(0.6, 1, 1_000)
    edges = np.quantile(reference, np.arange(1, 10) / 10)
    counts = [np.histogram(x, [-np.inf, *edges, np.inf])[0] for x in (now, reference)]
    p, q = ((np.append(n, 0) + 0.5) / (1_000 + 11 / 2) for n in counts)
    psi, found = Psi.empty(1).update(pl.DataFrame({"x": np.concatenate((reference, now))}))
    assert psi.newest[0] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-12)
    assert found == [(0, 1_999)]


def test_psi_sees_values_go_missing_and_a_window_becomes_the_reference() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, 6_000)
    x[3_000:] = np.where(rng.random(3_000) < 0.3, NAN, x[3_000:])
    assert rows_of(Psi.empty(1), x) == [3_999]


def test_psi_without_drift_is_as_small_as_stated() -> None:
    rng = np.random.default_rng(5)
    values = []
    psi = Psi.empty(3)
    for _ in range(50):
        psi, found = psi.update(pl.DataFrame(rng.normal(0, 1, (1_000, 3))))
        assert found == []
        values.append(psi.newest)
    assert np.mean(values[1:]) == pytest.approx(2 * 10 / 1_000, rel=0.3)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "least", "most"), [("adwin", 10, 120), ("page_hinkley", 30, 120)])
def test_the_stated_delay_of_one_deviation(run: Run, kind: str, least: int, most: int) -> None:
    rng = np.random.default_rng(6)
    for scale in (1e-3, 1.0, 1e6):
        x = scale * np.concatenate((rng.normal(5, 1, 3_000), rng.normal(6, 1, 1_000)))
        options = {"columns": ["x"], "detector": kind, "log": False}
        done = run("drift", options, *(pl.DataFrame({"x": [v]}) for v in x.tolist()))
        rows = [i for i, batch in enumerate(done) if batch.counts["s", kind]]
        assert len(rows) == 1
        assert least <= rows[0] - 3_000 <= most


@pytest.mark.parametrize("kind", ["adwin", "page_hinkley", "psi"])
def test_false_alarms_are_as_rare_as_stated(run: Run, kind: str) -> None:
    rng = np.random.default_rng(7)
    columns = {
        "normal": rng.normal(0, 1, 300_000),
        "flat": rng.random(300_000),
        "skewed": rng.exponential(1, 300_000),
        "heavy": rng.lognormal(0, 1, 300_000),
    }
    found = {}
    for name, column in columns.items():
        options = {"columns": [name], "detector": kind, "log": False}
        (done,) = run("drift", options, pl.DataFrame({name: column}))
        found[name] = done.counts["s", kind]
    assert found.pop("heavy") <= 3
    assert found == {"normal": 0, "flat": 0, "skewed": 0}


def test_drift_is_logged_with_its_place(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    x = [0.0] * 400 + [9.0] * 400
    with caplog.at_level(logging.WARNING, "headrace.scrub"):
        (done,) = run("drift", {"columns": ["x"], "warmup": 0}, {"x": x})
    assert done.frame["x"].to_list() == x
    (record,) = [r for r in caplog.records if r.message == "drift"]
    told = vars(record)
    assert (told["stage"], told["detector"], told["column"]) == ("s", "adwin", "x")
    assert 400 < told["position"] < 440
    assert done.counts["s", "adwin"] == 1


@pytest.mark.parametrize("kind", ["adwin", "page_hinkley", "psi"])
def test_numbers_too_large_are_counted_and_told(stage: Make, batch: Any, kind: str) -> None:
    made = stage("drift", columns=["x", "y"], detector=kind)
    made.bind({"x": pl.Float64(), "y": pl.Float64()})
    first = made.apply(batch(x=[1.0, 1e200, None, -1e140], y=[1.0, 2.0, math.inf, math.nan]))
    second = made.apply(batch(x=[1.0, 9e139, -3e300], y=[1.0, 2.0, 3.0]))
    third = made.apply(batch(x=[1.0], y=[1.0]))
    assert [b.counts.get(("s", "too_large")) for b in (first, second, third)] == [2, 1, None]
    (remark,) = made.remarks()
    assert "learned nothing from 3 numbers of column 'x' of size 1e+140 or more" in remark
    assert "(the first: 1e+200)" in remark


def test_the_metric_knows_every_detector() -> None:
    assert METRICS["headrace_drift_detections_total"].labels["detector"] == DETECTORS


# --------------------------------------------------------------------------------- starting anew


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("standardize", {}),
        ("standardize", {"halflife": 50_000}),
        ("robust", {}),
        ("normalize", {}),
        ("power", {"min_rows": 20}),
        ("outliers", {"action": "clip", "threshold": 3}),
        ("missing", {"strategy": "median"}),
    ],
)
def test_a_stage_starts_anew_where_a_column_drifts(
    kind: str, options: dict[str, Any], stage: Make, batch: Any, same: Any
) -> None:
    rng = np.random.default_rng(8)
    frames = [pl.DataFrame({"x": rng.normal(m, 1, 200)}) for m in (0, 0, 0, 40, 40, 40)]
    watch = stage("drift", columns=["x"], warmup=0)
    forgets = stage(kind, columns=["x"], forget_on="s", **options)
    watch.bind({"x": pl.Float64()})
    forgets.bind({"x": pl.Float64()})
    drifted = [watch.apply(batch(frame)) for frame in frames]
    assert [b.counts["s", "adwin"] for b in drifted] == [0, 0, 0, 1, 0, 0]
    before = [forgets.apply(b).frame["x"] for b in drifted]
    fresh = stage(kind, columns=["x"], **options)
    fresh.bind({"x": pl.Float64()})
    after = [fresh.apply(b).frame["x"] for b in drifted[3:]]
    assert all(a.equals(b) for a, b in zip(before[4:], after[1:], strict=True))
    assert forgets.snapshot()["rows"] == 600
    plain = stage(kind, columns=["x"], **options)
    plain.bind({"x": pl.Float64()})
    told = [plain.apply(b).frame["x"] for b in drifted]
    assert told[3].equals(before[3])  # the batch itself is still changed by what was known


def test_freezing_counts_from_the_drift(stage: Make, batch: Any) -> None:
    made = stage("standardize", columns=["x"], forget_on="s", freeze_after=2)
    made.bind({"x": pl.Float64()})
    for values, drifted in (([1.0, 3.0], 0), ([50.0, 70.0, 90.0], 1), ([100.0], 0)):
        made.apply(batch(x=values).counted("s", psi=drifted))
    assert made.transforms()[0].shift == 60.0
    assert made.snapshot()["rows"] == 2


def test_forgetting_on_a_stage_that_is_not_there_is_one_sentence(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        run("standardize", {"columns": ["x"], "forget_on": "watch"}, {"x": [1.0]})
    assert str(caught.value) == (
        "[scrub.s] forgets on 'watch', but no 'drift' stage of that name stands before it: put "
        "[scrub.watch] before [scrub.s], or take 'forget_on' away."
    )
