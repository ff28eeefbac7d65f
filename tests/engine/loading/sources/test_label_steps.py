"""Steps of rows and labels: where they begin does not depend on where batches do."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from engine.loading.sources.label_steps import LabelSteps
from engine.types import PARTITION, POSITION, Records

EVERY, LABELS = 5, 7
stream = st.lists(st.sampled_from(["rows:a", "rows:b", "labels:c"]), max_size=60)


def pieces_of(partitions: list[str], start: int, stop: int) -> list[Records]:
    """Records start..stop-1 of a stream as pieces, each of one partition; positions are theirs in
    the stream."""
    pieces = []
    at = start
    for partition, run in itertools.groupby(partitions[start:stop]):
        n, counter = len(list(run)), partition.partition(":")[0] + ":"
        positions = np.arange(at, at + n)
        pieces.append(
            Records(
                partition=partition,
                positions=positions,
                next=at + n,
                values=pl.DataFrame({"x": positions}),
                arrived=0.0,
                counter=counter,
                counted=sum(before.startswith(counter) for before in partitions[:at]),
            )
        )
        at += n
    return pieces


def begun(partitions: list[str]) -> list[int]:
    """How many steps have begun at each record, counted one by one."""
    steps, given = [0], {"rows": 0, "labels": 0}
    for partition in partitions:
        side = partition.partition(":")[0]
        steps.append(steps[-1] + (given[side] % {"rows": EVERY, "labels": LABELS}[side] == 0))
        given[side] += 1
    return steps


@given(stream, st.sets(st.integers(0, 60)))
def test_any_cut_has_the_same_steps(partitions: list[str], cuts: set[int]) -> None:
    want = begun(partitions)
    ends = sorted({0, len(partitions), *(cut for cut in cuts if cut < len(partitions))})
    for start, stop in itertools.pairwise(ends):
        steps = LabelSteps.of(pieces_of(partitions, start, stop), EVERY, LABELS)
        order = np.random.default_rng(start).permutation(np.arange(start, stop))
        order = order[: -(-len(order) * 3 // 4)]  # some rows were rejected
        frame = pl.DataFrame(
            {PARTITION: [partitions[at] for at in order], POSITION: order},
            schema={PARTITION: pl.String(), POSITION: pl.Int64()},
        )
        records = steps.records_of(frame)
        assert records.tolist() == (order - start).tolist()
        split = steps.split(records)
        assert len(split) == want[stop] - want[start] + 1
        for step, rows in enumerate(split):
            assert rows.tolist() == sorted(rows.tolist())
            assert {want[order[row] + 1] - want[start] for row in rows} <= {step}


def test_unknown_records_are_of_one_step() -> None:
    steps = LabelSteps.of((), EVERY)
    frame = pl.DataFrame({PARTITION: ["rows:a"] * 3, POSITION: [4, 5, 6]})
    records = steps.records_of(frame)
    assert records.tolist() == [0, 0, 0]
    assert [part.tolist() for part in steps.split(records)] == [[0, 1, 2]]
