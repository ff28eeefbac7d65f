"""Neighbours done together are the same as one after the other, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.batch_group import BatchGroup
from engine.scrub.fusion import FusedStages, RecordTime, _run_ops, fuse
from engine.scrub.values.missing import Missing
from engine.scrub.values.outliers import Outliers
from engine.scrub.values.scale import Normalize, Robust, Standardize
from engine.types import Batch, Mark
from tests.scrub.conftest import equal
from tests.size import examples

COLUMNS = ("a", "b", "c")
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "mean": (Missing, {"strategy": "mean"}),
    "median": (Missing, {"strategy": "median"}),
    "constant": (Missing, {"strategy": "constant", "value": 0.5}),
    "zscore": (Outliers, {"threshold": 1.5, "min_rows": 5}),
    "bounds": (Outliers, {"method": "bounds", "low": -1}),
    "iqr": (Outliers, {"method": "iqr", "min_rows": 5}),
    "standardize": (Standardize, {}),
    "fading": (Standardize, {"halflife": 20.0}),
    "normalize": (Normalize, {}),
    "clipped": (Normalize, {"clip": True}),
    "robust": (Robust, {}),
}
names = st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5)
number = st.one_of(
    st.floats(-9, 9),
    st.sampled_from([None, float("nan"), float("inf"), -float("inf"), 1e200, 1e300]),
)
frames = st.lists(st.lists(st.tuples(number, number, number), max_size=40), max_size=5)
TYPES = [pl.Float64(), pl.Float32(), pl.Int64(), pl.UInt8(), pl.Float16()]
WIDE = (TYPES[0],) * len(COLUMNS)


def stages(
    kinds: list[str],
    frozen: int | None,
    columns: tuple[str, ...] = COLUMNS,
    types: tuple[pl.DataType, ...] = WIDE,
) -> list[Any]:
    made = []
    schema: Any = dict(zip(columns, types, strict=False))
    for i, kind in enumerate(kinds):
        cls, own = KINDS[kind]
        learns = kind not in ("constant", "bounds")
        own = {"columns": columns, **own, **({"freeze_after": frozen} if learns else {})}
        stage = cls(f"{kind}{i}", cls.Settings(**own))
        schema = stage.bind(schema)
        made.append(stage)
    return made


def batch(
    rows: list[Any], more: tuple[pl.Series, ...] = (), types: tuple[pl.DataType, ...] = WIDE
) -> Batch:
    frame = pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.Float64()), orient="row")
    frame = frame.cast(dict(zip(COLUMNS, types, strict=True)), strict=False)
    places = pl.DataFrame({"_partition": ["p"] * len(rows), "_position": np.arange(len(rows))})
    return Batch(frame=places.hstack(frame).hstack(list(more)), mark=Mark(), arrived=0.0)


def heard(took: list[str]) -> RecordTime:
    def hear(
        stage: str, start: float, wall: float, cpu: float, rows: int = 0, batches: int = 1
    ) -> None:
        assert wall >= 0
        assert cpu >= 0
        took.extend([stage] * batches)

    return hear


@settings(deadline=None, max_examples=examples(80))
@given(names, frames, st.sampled_from([None, 1, 17, 40]), st.tuples(*[st.sampled_from(TYPES)] * 3))
def test_together_is_as_apart(
    kinds: list[str], parts: list[Any], frozen: int | None, types: tuple[pl.DataType, ...]
) -> None:
    apart, together = (stages(kinds, frozen, types=types) for _ in range(2))
    (chain,) = fuse(together)
    assert isinstance(chain, FusedStages)
    for rows in parts:
        one = two = batch(rows, types=types)
        for stage in apart:
            one = stage.apply(one)
        took: list[str] = []
        (two,) = chain.apply(BatchGroup.of(two), heard(took)).batches
        assert took == [stage.name for stage in together]
        assert two.frame.schema == one.frame.schema
        assert two.frame.equals(one.frame)
        assert bits(two.frame) == bits(one.frame)
        assert dict(two.counts) == dict(one.counts)
        for a, b in zip(apart, together, strict=True):
            assert equal(a.snapshot(), b.snapshot())


def bits(frame: pl.DataFrame) -> list[bytes]:
    filled = (frame.get_column(c).fill_null(7.0).to_numpy() for c in COLUMNS)
    return [np.where(np.isnan(column), np.nan, column).tobytes() for column in filled]


def test_the_batch_that_comes_in_stays_as_it_is() -> None:
    given = batch([(1.0, None, 3.0), (4.0, 5.0, float("nan"))])
    before = copy.deepcopy(given.frame)
    (chain,) = fuse(stages(["mean", "zscore", "standardize"], None))
    assert isinstance(chain, FusedStages)
    (made,) = chain.apply(BatchGroup.of(given), heard([])).batches
    assert given.frame.equals(before)
    assert made.frame.select(COLUMNS).null_count().sum_horizontal().item() == 0


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("kind", TYPES[:4])
def test_what_becomes_floats_goes_together(
    kind: pl.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = (kind,) * 3
    (chain,) = fuse(stages(["mean", "zscore", "standardize"], None, types=types))
    assert isinstance(chain, FusedStages)
    monkeypatch.delattr("engine.scrub.fusion._one_by_one")
    (done,) = chain.apply(
        BatchGroup.of(batch([(1.0, None, 3.0)] * 5, types=types)), heard([])
    ).batches
    assert done.frame.schema["b"] == pl.Float64()


def test_what_stays_whole_goes_one_after_the_other() -> None:
    types = (pl.Float64(), pl.Int64(), pl.Float32())
    (chain,) = fuse(stages(["bounds"], None, types=types))
    assert isinstance(chain, FusedStages)
    (done,) = chain.apply(
        BatchGroup.of(batch([(5.0, -2.0, -3.0)] * 5, types=types)), heard([])
    ).batches
    assert tuple(done.frame.select(COLUMNS).dtypes) == types
    assert done.frame.select(COLUMNS).row(0) == (5.0, -1, -1.0)


@pytest.mark.parametrize(
    ("kinds", "columns", "chains"),
    [
        (["mean", "zscore"], [COLUMNS, COLUMNS], [2]),
        (["mean", "zscore"], [COLUMNS, COLUMNS[:2]], [1, 1]),
        (["mean", "zscore", "standardize", "robust"], [COLUMNS, COLUMNS, ("a",), ("a",)], [2, 2]),
        (["mean"], [COLUMNS], [1]),
    ],
)
def test_neighbours_on_the_same_columns_are_chained(
    kinds: list[str], columns: list[tuple[str, ...]], chains: list[int]
) -> None:
    made = [stages([kind], None, own)[0] for kind, own in zip(kinds, columns, strict=True)]
    found = [step for step in fuse(made) if isinstance(step, FusedStages)]
    assert [len(chain.stages) for chain in found] == chains


def test_the_loop_is_compiled_for_what_it_gets_when_the_chain_is_made() -> None:
    """The first batch does not wait for it: one signature, after chains of all kinds."""
    assert len(_run_ops.signatures) == 1
