"""The scales of waiting rows: each row's own, for as long as it waits, in little memory."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.running.late_labels.label_join import Arrivals, LabelJoin
from engine.running.late_labels.scale_table import LEAST, ScaleTable, scale_of
from engine.types import Scale, Scales
from tests.size import examples

COLUMNS = ("x", "y")


def scales(*shifts: float) -> Scales:
    """Of a batch in which each row has the shift of these; y has nothing known of it."""
    shift = np.array([[each, np.nan] for each in shifts])
    factor = np.full(shift.shape, 2.0)
    return (Scale(columns=COLUMNS, shift=shift, factor=factor, part=np.arange(len(shifts))),)


@settings(deadline=None, max_examples=examples(100))
@given(
    batches=st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12),
    left=st.sets(st.integers(0, 60)),
    at=st.integers(0, 12),
)
def test_each_row_that_waits_has_its_own_scale(
    batches: list[list[int]], left: set[int], at: int
) -> None:
    table, shifts = ScaleTable(COLUMNS), list[int]()
    for i, batch in enumerate(batches):
        table.add(len(shifts), len(batch), scales(*batch))
        shifts += batch
        if i == at:
            waiting = [row for row in range(len(shifts)) if row not in left]
            table.keep(np.array(waiting, np.int64))
            table = table.restored(table.snapshot())
            assert len(table) <= len(waiting) + 1
    rows = np.array([row for row in range(len(shifts)) if row not in left], np.int64)
    if len(rows):
        scale = scale_of(table.of(rows))
        assert scale.shift[:, 0].tolist() == [shifts[row] for row in rows]
        assert np.isnan(scale.shift[:, 1]).all()
        assert (scale.factor == 2).all()
    if shifts:
        (newest,) = table.newest()
        assert newest.shift[0] == shifts[-1]


def test_a_scale_that_does_not_move_is_kept_once() -> None:
    table = ScaleTable(COLUMNS)
    for batch in range(1_000):
        table.add(10 * batch, 10, scales(*[7.0] * 10))
    assert len(table) == 1


def arrivals(first: int, rows: int, own: Scales = ()) -> Arrivals:
    keys = np.arange(first, first + rows)
    frames = {"frame": pl.DataFrame({"number": keys})}
    return Arrivals(
        keys=keys.astype(np.uint64), times=keys, turns=np.arange(rows), frames=frames, scales=own
    )


def join_of(most: int = 10**9) -> LabelJoin:
    return LabelJoin(horizon=10**6, lateness=0, most=most, scaled=COLUMNS)


def test_scales_go_with_the_last_row_that_has_them() -> None:
    """One row in a hundred waits on, and the scale of its batch."""
    join = join_of()
    none = arrivals(0, 0)
    for row in range(2_000):
        join.add(arrivals(row, 1, scales(float(row))), none)
        join.add(none, arrivals(row, 1) if row % 100 else none)
        settled = join.settle()
        if row % 100:
            assert scale_of(settled.rows["scale"]).shift[0, 0] == row
    assert len(join.rows.scales) <= 2 * LEAST + 1
    join.snapshot()
    assert len(join.rows.scales) == 2_000 // 100 + 1


def test_scales_count_as_memory_of_what_waits() -> None:
    """A scale for each row: rows leave early, and no more of them than have to."""
    most = 100_000
    join, none = join_of(most), arrivals(0, 0)
    for row in range(3_000):
        join.add(arrivals(row, 1, scales(float(row))), none)
        if row % 50 == 0:
            join.settle()
    join.settle()
    assert 0.3 * most < join.rows.live_bytes <= most
