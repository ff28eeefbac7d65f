"""Statistics by key, against polars' groups; and that their memory is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.statistics import KeyedMoments
from engine.types import Batch
from tests.size import examples

NAN = math.nan
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
NUMBER = st.integers(-1000, 1000).map(float) | st.sampled_from([NAN, math.inf, None])
ROWS = st.lists(st.tuples(st.integers(0, 5), NUMBER, NUMBER), max_size=60)


def frame_of(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    schema = {"hash": pl.UInt64, "x": pl.Float64, "y": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def learned(frame: pl.DataFrame, sizes: list[int], **options: Any) -> list[KeyedMoments]:
    """The statistic of each part."""
    parts, at = [], 0
    for size in [*sizes, frame.height]:
        parts.append(KeyedMoments.empty(2, **options).update(frame.slice(at, size)))
        at += size
    return parts


@settings(max_examples=examples(100), deadline=None)
@given(rows=ROWS, sizes=st.lists(st.integers(0, 20), max_size=5))
def test_parts_merged_are_polars_groups_of_the_whole(
    rows: list[tuple[Any, ...]], sizes: list[int]
) -> None:
    frame = frame_of(rows)
    merged = KeyedMoments.empty(2)
    for part in learned(frame, sizes):
        merged = merged.merge(part)
    good = frame.with_columns(
        pl.when(pl.col(c).is_finite()).then(pl.col(c)).alias(c) for c in ("x", "y")
    ).with_row_index()
    wanted = good.group_by("hash").agg(
        pl.col("index").max(),
        *(getattr(pl.col(c), f)().alias(c + f) for c in "xy" for f in ("count", "mean")),
        *(pl.col(c).var(ddof=0).alias(c + "var") for c in "xy"),
    )
    wanted = wanted.sort("hash")
    assert merged.keys.tolist() == wanted["hash"].to_list()
    assert merged.seen.tolist() == wanted["index"].to_list()
    for j, c in enumerate("xy"):
        count = wanted[c + "count"].to_numpy()
        assert merged.count[:, j].tolist() == count.tolist()
        mean = wanted[c + "mean"].fill_null(0.0).to_numpy()
        variance = wanted[c + "var"].fill_null(0.0).to_numpy()
        np.testing.assert_allclose(merged.mean[:, j], mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(merged.m2[:, j], variance * count, rtol=1e-9, atol=1e-6)
        assert merged.total.count[j] == count.sum()
    assert (merged.age, merged.left) == (frame.height, 0)


@settings(max_examples=examples(100), deadline=None)
@given(
    keys=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    cut=st.integers(1, 20),
    size=st.integers(1, 8),
)
def test_the_keys_seen_last_stay(keys: list[int], cut: int, size: int) -> None:
    frame = frame_of([(key, float(i), NAN) for i, key in enumerate(keys)])
    statistic = KeyedMoments.empty(2, size)
    known: dict[int, int] = {}
    left = 0
    for at in range(0, len(keys), cut):
        statistic = statistic.update(frame.slice(at, cut))
        for key in keys[at : at + cut]:
            known[key] = known.pop(key, 0) + 1
        while len(known) > size:
            known.pop(next(iter(known)))
            left += 1
    assert dict(zip(statistic.keys.tolist(), statistic.count[:, 0].tolist(), strict=True)) == known
    assert statistic.left == left
    assert len(statistic.keys) <= size
    assert statistic.total.count[0] == len(keys)


def test_each_key_has_its_own_scale(run: Run) -> None:
    rng = np.random.default_rng(1)
    key = rng.integers(0, 30, 20_000)
    x = 100.0 * key + (1 + key) * rng.normal(0, 1, 20_000)
    frame = pl.DataFrame({"key": key, "x": x})
    parts = [frame.slice(at, 1000) for at in range(0, 20_000, 1000)]
    *_, last = run("standardize_by", {"columns": ["x"], "by": ["key"]}, *parts, frame)
    by_key = last.frame.group_by("key").agg(
        pl.col("x").mean().alias("mean"), pl.col("x").std(ddof=0).alias("std")
    )
    assert by_key["mean"].abs().max() < 1e-9  # type: ignore[operator]
    assert by_key["std"].to_list() == pytest.approx([1.0] * 30, rel=1e-9)


@pytest.mark.usefixtures("steady")
def test_a_rare_key_is_measured_by_all(run: Run) -> None:
    options = {"columns": ["x"], "by": ["key"], "min_rows": 3}
    first = {"key": ["a", "a", "a", "b", None], "x": [1.0, 3.0, 5.0, 7.0, 9.0]}
    second = {"key": ["a", "b", "new", None, "a"], "x": [3.0, 5.0, 5.0, None, NAN]}
    done = run("standardize_by", options, first, second)
    assert done[0].frame["x"].to_list() == [0.0] * 5
    a, b, new, null, nan = done[1].frame["x"].to_list()
    assert (a, b, new, null) == (0.0, 0.0, 0.0, None)
    assert math.isnan(nan)
    third = {"key": ["a", "new"], "x": [3.0 + math.sqrt(8 / 3), 50.0]}
    scaled = run("standardize_by", options, first, third)[1].frame["x"].to_list()
    assert scaled == pytest.approx([1.0, 45 / math.sqrt(8)])


@pytest.mark.usefixtures("steady")
def test_a_constant_key_becomes_0(run: Run) -> None:
    part = {"key": [1] * 20 + [2] * 20, "x": [0.1] * 20 + [0.1, 0.7] * 10}
    options = {"columns": ["x"], "by": ["key"], "min_rows": 2}
    *_, last = run("standardize_by", options, part, {"key": [1, 2], "x": [0.9, 0.7]})
    assert last.frame["x"].to_list() == [0.0, pytest.approx(1.0)]


def test_memory_is_bounded_and_what_left_is_counted(stage: Make, batch: Any) -> None:
    made = stage("standardize_by", columns=["x"], by=["key"], keys=100)
    made.bind({"key": pl.Int64(), "x": pl.Float64()})
    forgotten = 0
    for at in range(0, 5_000, 50):
        done = made.apply(batch(key=list(range(at, at + 50)), x=[1.0] * 50))
        forgotten += done.counts["s", "forgotten"]
    assert len(made.snapshot()["keys"]) == 100
    assert forgotten == 4_900
