"""Blocks in an order of their own: every row once, the same order however the records came, and
after a restart the rest to the digit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from connectors.formats.values.columns import Columns
from connectors.memory import MemorySource, Pause
from engine.config import LoaderSettings
from engine.loading.loader import Loader
from engine.loading.shuffle import SHUFFLE_STATE
from engine.types import EndOfStream, Mark, Records, Schema, Source
from tests.size import examples

pytestmark = pytest.mark.usefixtures("idle")
SCHEMA: Schema = {"a": pl.Int64()}


class Partitions(Source):
    """Partitions whose records come interleaved, another way for each seed; every third offset is a
    gap, and read last a piece without rows, as of a compacted topic."""

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.format = Columns()
        self._sizes = sizes
        self._chance = np.random.default_rng(seed)
        self._at = [0] * len(sizes)

    def schema(self, declared: Schema) -> Schema:
        return SCHEMA

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        left = [i for i, size in enumerate(self._sizes) if self._at[i] < size]
        if not left:
            raise EndOfStream
        i = int(self._chance.choice(left))
        start = self._at[i]
        self._at[i] = min(self._sizes[i], start + int(self._chance.integers(1, 9)))
        positions = np.array([p for p in range(start, self._at[i]) if p % 3 != 2], np.int64)
        return Records(
            partition=f"p{i}",
            positions=positions,
            next=self._at[i],
            values=pl.DataFrame({"a": positions + 1000 * i}, schema=SCHEMA),
            arrived=time.monotonic(),
        )

    def seek(self, mark: Mark) -> None:
        self._at = [mark.positions.get(f"p{i}", 0) for i in range(len(self._sizes))]

    def commit(self, mark: Mark) -> bool:
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {}

    def progress(self, mark: Mark) -> float | None:
        return None

    def close(self) -> None: ...


def loader(source: Any, mark: Mark | None = None, **options: Any) -> Loader:
    made = LoaderSettings(poll_timeout=0.01, **{"batch_rows": 4, "shuffle_rows": 16, **options})
    return Loader(source, schema=SCHEMA, settings=made, mark=mark)


def given_by(batches: Loader) -> list[tuple[list[int], Mark]]:
    """Rows and mark of each batch that has any."""
    with batches:
        return [(batch.frame["a"].to_list(), batch.mark) for batch in batches if len(batch)]


def rows(n: int) -> pl.DataFrame:
    return pl.DataFrame({"a": range(n)}, schema=SCHEMA)


def test_every_row_once_in_blocks_in_another_order() -> None:
    seen = [a for part, _ in given_by(loader(MemorySource.of([rows(40)]))) for a in part]
    for start in (0, 16, 32):
        block = seen[start : start + 16]
        assert sorted(block) == list(range(start, min(40, start + 16)))
        assert block != sorted(block)
    again = [a for part, _ in given_by(loader(MemorySource.of([rows(40)]))) for a in part]
    other = loader(MemorySource.of([rows(40)]), shuffle_seed=1)
    assert again == seen
    assert [a for part, _ in given_by(other) for a in part] != seen


def test_the_order_is_uniform() -> None:
    """Each row is first in its block as often as any other: 2,000 blocks of 4, chi-square at 0.1
    %."""
    seen = given_by(loader(MemorySource.of([rows(8_000)]), shuffle_rows=4))
    first = np.bincount([part[0] % 4 for part, _ in seen], minlength=4)
    assert ((first - 500) ** 2 / 500).sum() < 16.3


@settings(max_examples=examples(60), deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    shuffle_rows=st.integers(1, 50),
    batch_rows=st.integers(1, 20),
    seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    where=st.floats(0, 1),
)
def test_saved_anywhere_the_rest_is_the_same_and_no_row_is_lost_or_doubled(
    sizes: list[int], shuffle_rows: int, batch_rows: int, seeds: tuple[int, int], where: float
) -> None:
    """Also where the records come in another order the second time: within the block that was
    begun, the order stays."""
    options: dict[str, Any] = {"shuffle_rows": shuffle_rows, "batch_rows": batch_rows}
    whole = given_by(loader(Partitions(sizes, seeds[0]), **options))
    expected = sorted(
        p + 1000 * i for i, size in enumerate(sizes) for p in range(size) if p % 3 != 2
    )
    assert sorted(a for part, _ in whole for a in part) == expected
    if not whole:
        return
    cut = int(where * (len(whole) - 1))
    mark = whole[cut][1]
    rest = given_by(loader(Partitions(sizes, seeds[1]), mark, **options))
    before = [a for part, _ in whole[: cut + 1] for a in part]
    assert sorted(before + [a for part, _ in rest for a in part]) == expected
    # What was left of the block comes in the same batches.
    begun = mark.stages[SHUFFLE_STATE]
    if begun["given"]:
        after = [m.stages[SHUFFLE_STATE]["block"] for _, m in whole[cut + 1 :]]
        last = cut + 1 + after.index(begun["block"] + 1)
        left = [part for part, _ in whole[cut + 1 : last + 1]]
        assert [part for part, _ in rest[: len(left)]] == left


@settings(max_examples=examples(30), deadline=None)
@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 20), st.floats(0, 1))
def test_of_a_file_everything_is_the_same(
    n: int, shuffle_rows: int, batch_rows: int, where: float
) -> None:
    options: dict[str, Any] = {"shuffle_rows": shuffle_rows, "batch_rows": batch_rows}
    whole = given_by(loader(MemorySource.of([rows(n)]), **options))
    cut = int(where * (len(whole) - 1))
    rest = given_by(loader(MemorySource.of([rows(n)]), whole[cut][1], **options))
    assert [part for part, _ in rest] == [part for part, _ in whole[cut + 1 :]]
    assert [mark for _, mark in rest] == [mark for _, mark in whole[cut + 1 :]]


def test_nothing_is_committed_before_its_block_is_done() -> None:
    batches = given_by(loader(MemorySource.of([rows(40)])))
    positions = [mark.positions.get("memory", 0) for _, mark in batches]
    assert positions == [0, 0, 0, 16, 16, 16, 16, 32, 32, 40]


def test_rejects_come_with_the_first_batch_and_once() -> None:
    frame = pl.DataFrame({"a": ["1", "x", "3", "4", "y", "6"]})
    source = MemorySource.of([frame])
    with loader(source, shuffle_rows=6, batch_rows=2) as batches:
        seen = [(len(b), b.raw_rows, sum(map(len, b.rejects)), b.mark) for b in batches]
    assert [one[:3] for one in seen] == [(2, 4, 2), (2, 2, 0)]
    rest = loader(MemorySource.of([frame]), seen[0][3], shuffle_rows=6, batch_rows=2)
    with rest as batches:
        assert [(len(b), b.raw_rows, b.rejects) for b in batches] == [(2, 2, ())]


def test_a_block_that_fills_slowly_lets_the_loop_act_and_goes_after_max_delay() -> None:
    items: list[Any] = [rows(3), *[Pause()] * 40]
    with loader(MemorySource.of(items), max_delay=0.05) as batches:
        first = next(batch for batch in batches if len(batch))
    assert sorted(first.frame["a"].to_list()) == [0, 1, 2]


def test_its_bytes_count_and_close_a_block() -> None:
    big = pl.DataFrame({"a": ["x" * 10_000] * 40})
    settings = LoaderSettings(
        batch_rows=2, shuffle_rows=1_000, memory_budget=ByteSize(65_536 * 8), poll_timeout=0.01
    )
    held = []
    with Loader(MemorySource.of([big]), schema={"a": pl.String()}, settings=settings) as batches:
        blocks = set()
        for batch in batches:
            held.append(batches.budget.held()["shuffle"])
            blocks.add(batch.mark.stages[SHUFFLE_STATE]["block"])
    assert max(blocks) >= 4  # 13 rows are a quarter of the budget
    assert 0 < max(held) <= 65_536 * 8 // 2


@pytest.mark.parametrize("rows_", [0, 1])
def test_an_almost_empty_source_ends(rows_: int) -> None:
    assert len(given_by(loader(MemorySource.of([rows(rows_)])))) == rows_
