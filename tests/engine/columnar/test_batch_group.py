"""Batches that go through the loader together are what they would be one by one, to the bit: rows,
marks, statistics, counts, rejects, tensors, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from connectors.memory import MemorySource
from engine.columnar.batch_group import BatchGroup, StepFailed
from engine.config import LoaderSettings
from engine.loading import rebatch
from engine.loading.budget import Budget, BudgetAccount
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.types import Batch, Features, Mark, Schema, Stage
from tests.scrub.conftest import equal
from tests.scrub.test_fusion import COLUMNS, KINDS, number, stages
from tests.size import examples

pytestmark = pytest.mark.usefixtures("idle")
SCHEMA: Schema = {**dict.fromkeys(COLUMNS, pl.Float64()), "y": pl.Float64()}
FEATURES = Features(numeric=COLUMNS, target="y")


def frame(rows: list[Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


class Told(Stage):
    """A stage that counts, and fails at one batch."""

    def __init__(self, fails: int | None = None) -> None:
        super().__init__("told", None)
        self.seen = 0
        self._fails = fails

    def bind(self, schema: Schema) -> Schema:
        return schema

    def apply(self, batch: Batch) -> Batch:
        if self.seen == self._fails:
            raise ValueError("told to")
        self.seen += 1
        return batch.counted(self.name, rows=len(batch))

    def snapshot(self) -> int:
        return self.seen

    def restore(self, value: Any) -> None:
        self.seen = value

    def transforms(self) -> tuple[()]:
        return ()


def loader(
    frames: list[pl.DataFrame],
    kinds: list[str],
    own: Any = (),
    frozen: int | None = None,
    **options: Any,
) -> Loader:
    options = {"batch_rows": 7, "poll_timeout": 0.01, **options}
    made = stages(kinds, frozen)
    return Loader(
        MemorySource.of(frames),
        schema=SCHEMA,
        stages=[*made[:2], *own, *made[2:]],
        collate=Collate(FEATURES),
        settings=LoaderSettings(**options),
        keep_raw_from=1,
    )


def told(batch: Batch) -> Any:
    """All of a batch that does not depend on the clock."""
    assert batch.tensors is not None
    assert batch.tensors.target is not None
    return [
        batch.frame,
        batch.raw,
        dict(batch.mark.positions),
        dict(batch.mark.stages),
        {f"{stage} {what}": n for (stage, what), n in batch.counts.items()},
        [[r.stage, r.reason, r.rows] for r in batch.rejects],
        [batch.raw_rows, batch.raw_bytes, batch.added],
        batch.tensors.numeric.numpy().copy(),
        batch.tensors.target.numpy().copy(),
    ]


kinds = st.lists(st.sampled_from(list(KINDS)), min_size=2, max_size=5)
parts = st.lists(
    st.lists(st.tuples(number, number, number, st.floats(-1, 1)), max_size=90),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(deadline=None, max_examples=examples(30))
@given(kinds, parts, st.booleans(), st.sampled_from([None, 20]))
@example(["mean", "normalize"], [[(0.0,) * 4, (0.0, 0.0, 5e-324, 0.0)]], False, None)
def test_together_is_as_one_by_one(
    kinds: list[str], parts: list[Any], between: bool, frozen: int | None
) -> None:
    frames = [frame(rows) for rows in parts]

    def run(apply_group: int, mark: Mark | None = None) -> list[Batch]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rebatch, "MAX_GROUP_BATCHES", apply_group)
            with loader(frames, kinds, [Told()] if between else [], frozen) as batches:
                if mark is not None:
                    batches.seek(mark)
                return list(batches)

    one, many = run(1), run(4)
    assert len(one) == len(many)
    assert all(equal(told(a), told(b)) for a, b in zip(one, many, strict=True))
    middle = len(many) // 2
    if middle:
        rest = run(4, many[middle - 1].mark)
        assert all(equal(told(a), told(b)) for a, b in zip(one[middle:], rest, strict=True))


ROWS = frame([(float(i), None if i % 5 == 0 else -i / 3, i % 3 - 1.0, 0.5) for i in range(100)])


def test_rows_side_by_side_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.scrub.base.COLD_ROWS", 0)  # those go one by one
    sizes = []
    apply_group = Collate.apply_group

    def spy(self: Collate, batch_group: BatchGroup) -> BatchGroup:
        sizes.append(len(batch_group))
        assert batch_group.frame is not None
        assert batch_group.frame.height == sum(map(len, batch_group.batches))
        return apply_group(self, batch_group)

    monkeypatch.setattr(Collate, "apply_group", spy)
    with loader([ROWS], ["mean", "zscore", "standardize"]) as batches:
        assert [len(batch) for batch in batches] == [7] * 14 + [2]
    assert sizes == [4, 4, 4, 2, 1]


@pytest.mark.parametrize(
    "options",
    [{"latency_objective": 1.0}, {"batch_bytes": ByteSize(300)}, {"batch_rows": 60}],
    ids=["deadline", "bytes", "large"],
)
def test_batches_that_may_not_go_together_go_one_by_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    apply_group = Collate.apply_group

    def spy(self: Collate, batch_group: BatchGroup) -> BatchGroup:
        sizes.append(len(batch_group))
        return apply_group(self, batch_group)

    monkeypatch.setattr(Collate, "apply_group", spy)
    with loader([ROWS], ["mean", "zscore"], **options) as batches:
        assert sum(len(batch) for batch in batches) == 100
    assert set(sizes) == {1}


@pytest.mark.parametrize("fails", [0, 1, 5, 6])
def test_a_stage_that_fails_does_so_after_the_batches_before(fails: int) -> None:
    with loader([ROWS], ["mean", "zscore", "standardize"], [Told(fails)]) as batches:
        loop = iter(batches)
        got = [next(loop) for _ in range(fails)]
        for _ in range(2):
            with pytest.raises(ValueError, match="told to"):
                next(loop)
    with loader([ROWS], ["mean", "zscore", "standardize"], [Told()]) as batches:
        expected = [batch for batch, _ in zip(batches, range(fails), strict=False)]
    assert all(equal(told(a), told(b)) for a, b in zip(got, expected, strict=True))


def test_a_bad_row_costs_itself() -> None:
    text = [str(x) if x % 10 else "none" for x in range(60)]
    source = MemorySource.of([pl.DataFrame({"n": text})])
    made = LoaderSettings(batch_rows=7, poll_timeout=0.01)
    with Loader(source, schema={"n": pl.Int64()}, settings=made) as batches:
        got = list(batches)
    assert [batch.raw_rows for batch in got] == [7] * 8 + [4]
    assert [x for batch in got for x in batch.frame["n"]] == [x for x in range(60) if x % 10]
    assert sum(len(r) for batch in got for r in batch.rejects) == 6
    assert [batch.mark.positions["memory"] for batch in got] == [*range(7, 57, 7), 60]


def test_what_is_done_and_not_asked_for_is_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    hold = Budget.hold

    def spy(self: Budget, account: BudgetAccount, nbytes: int) -> None:
        if account.name == "batch_group":
            told.append(nbytes)
        hold(self, account, nbytes)

    monkeypatch.setattr(Budget, "hold", spy)
    with loader([ROWS], ["mean", "zscore"]) as batches:
        for _ in batches:
            pass
        assert batches.budget.held()["batch_group"] == 0
    waiting = [n > 0 for n in told[1:16]]  # the first is of the start
    assert waiting == [*[True, True, True, False] * 3, True, False, False]


def test_each_stops_where_the_step_fails() -> None:
    rows = pl.DataFrame({"_partition": ["p"], "_position": [0]})
    batch_group = BatchGroup(
        batches=tuple(Batch(frame=rows, mark=Mark(), arrived=float(i)) for i in range(3))
    )

    def step(batch: Batch) -> Batch:
        if batch.arrived == 1:
            raise KeyError("x")
        return batch

    with pytest.raises(StepFailed) as caught:
        batch_group.map(step)
    assert [batch.arrived for batch in caught.value.done.batches] == [0.0]
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyError):
        BatchGroup(batches=batch_group.batches[1:]).map(step)


def test_tensors_share_nothing_with_later_batches() -> None:
    """Memory is used again: what a consumer keeps must not change."""
    big = pl.DataFrame({c: np.random.default_rng(0).normal(size=90_000) for c in SCHEMA})
    with loader([big], ["mean", "zscore", "standardize"], batch_rows=4_096) as batches:
        kept, copies = [], []
        for batch in batches:
            assert batch.tensors is not None
            kept.append((batch.tensors.numeric, batch.frame))
            copies.append((batch.tensors.numeric.clone(), batch.frame.clone().to_dict()))
        for (tensor, rows), (copy, columns) in zip(kept, copies, strict=True):
            assert tensor.equal(copy)
            assert rows.equals(pl.DataFrame(columns))
