"""What two instances of a stage learned apart is, merged, what one learns of all rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.types import Batch
from tests.size import examples

Make = Callable[..., Any]
COLUMNS = ["x", "y", "n"]
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "mean": ("missing", {"strategy": "mean"}),
    "most frequent": ("missing", {"columns": ["n"], "strategy": "most_frequent"}),
    "last": ("missing", {"strategy": "last", "by": ["key"]}),
    "last of all": ("missing", {"strategy": "last"}),
    "impute": ("impute", {"min_rows": 5}),
    "zscore": ("outliers", {"threshold": 1.0, "min_rows": 5}),
    "standardize": ("standardize", {}),
    "halflife": ("standardize", {"halflife": 9.0}),
    "by key": ("standardize_by", {"by": ["key"], "min_rows": 3}),
    "normalize": ("normalize", {"low": -1}),
}
CONTINUOUS: dict[str, Any] = {"columns": ["x", "y"]}
# Of columns without equal values: between two of those a digest interpolates.
SKETCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "median": ("missing", {**CONTINUOUS, "strategy": "median"}),
    "iqr": ("outliers", {**CONTINUOUS, "method": "iqr", "factor": 0.5}),
    "robust": ("robust", {**CONTINUOUS}),
    "yeo-johnson": ("power", {**CONTINUOUS, "standardize": False}),
    "yeo-johnson, standard": ("power", {**CONTINUOUS}),
    "log, standard": ("power", {**CONTINUOUS, "method": "log", "standardize": True}),
}


@functools.cache
def rows(n: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(5, 2, n)
    frame = pl.DataFrame(
        {
            "x": x,
            "y": x + rng.exponential(1, n),
            "n": rng.integers(0, 4, n),
            "key": rng.choice(["a", "b", "c"], n),
        }
    )
    return frame.with_columns(
        pl.when(pl.Series(rng.random(n) > 0.15)).then(pl.col(c)) for c in COLUMNS
    )


def learned(stage: Make, batch: Any, case: tuple[str, dict[str, Any]], parts: Any) -> Any:
    """An instance that has learned these frames."""
    kind, options = case
    made = stage(kind, **{"columns": COLUMNS, **options})
    made.bind(dict(rows(0, 0).schema))
    for frame in parts:
        made.apply(batch(frame))
    return made


def applied(stage: Any, batch: Callable[..., Batch]) -> np.ndarray[Any, Any]:
    """What the stage makes of rows that it has not seen, as numbers."""
    done = stage.apply(batch(rows(50, 99))).frame
    return np.asarray(done.select(COLUMNS).cast(pl.Float64).to_numpy())


@pytest.mark.parametrize("case", EXACT)
@settings(max_examples=examples(15), deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 20))
def test_merged_is_the_whole(
    case: str, sizes: list[int], seed: int, stage: Make, batch: Any
) -> None:
    frame = rows(sum(sizes), seed)
    if case == "most frequent":  # of equal counts the one that led first does: the cut decides
        counts = frame["n"].drop_nulls().value_counts()["count"].top_k(2)
        assume(counts.n_unique() == len(counts))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    parts = [frame.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    whole = learned(stage, batch, EXACT[case], parts)
    merged = learned(stage, batch, EXACT[case], [])
    for part in parts:
        merged.merge(learned(stage, batch, EXACT[case], [part]).snapshot())
    np.testing.assert_allclose(
        applied(merged, batch), applied(whole, batch), rtol=1e-9, atol=1e-9, equal_nan=True
    )


@pytest.mark.parametrize("case", SKETCHED)
def test_merged_sketches_keep_their_error(case: str, stage: Make, batch: Any) -> None:
    frame = rows(8_000, 3)
    parts = [frame.slice(at, 1_000) for at in range(0, 8_000, 1_000)]
    whole = learned(stage, batch, SKETCHED[case], parts)
    merged = learned(stage, batch, SKETCHED[case], parts[:3])
    merged.merge(learned(stage, batch, SKETCHED[case], parts[3:]).snapshot())
    np.testing.assert_allclose(
        applied(merged, batch), applied(whole, batch), rtol=0.005, atol=0.01, equal_nan=True
    )
    alone = learned(stage, batch, SKETCHED[case], [frame.tail(20)])
    assert not np.allclose(applied(alone, batch), applied(whole, batch), equal_nan=True)


def test_rows_add_up(stage: Make, batch: Any) -> None:
    a = learned(stage, batch, ("standardize", {"freeze_after": 70}), [rows(50, 1)])
    a.merge(learned(stage, batch, ("standardize", {}), [rows(30, 2)]).snapshot())
    assert a.snapshot()["rows"] == 80
    before = a.transforms()
    a.apply(batch(rows(10, 3)))
    assert a.transforms() == before
