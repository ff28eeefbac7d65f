"""Which rows are held out: the same ones whatever the batches, the epoch or a restart."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.holdout import MAX_FRAMES, Holdout


def rows(n: int, start: int = 0, partition: str = "a.csv") -> pl.DataFrame:
    """Raw rows as a source gives them."""
    return pl.DataFrame({"_position": np.arange(start, start + n)}).select(
        pl.lit(partition).alias("_partition"), "_position", x=pl.col("_position") * 2.0
    )


def fed(frame: pl.DataFrame, cuts: list[int], holdout: Holdout) -> Holdout:
    for start, stop in zip([0, *cuts], [*cuts, frame.height], strict=True):
        if stop > start:
            holdout.add(frame[start:stop])
    return holdout


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 600), max_size=100), epochs=st.integers(1, 3))
def test_no_cut_and_no_epoch_changes_which_rows(cuts: list[int], epochs: int) -> None:
    frame = pl.concat([rows(300), rows(300, partition="b.csv")])
    expected = frame.filter(Holdout(0.2, 1_000).takes(frame))
    holdout = Holdout(0.2, 1_000)
    for _ in range(epochs):
        fed(frame, sorted(cuts), holdout)
    held = holdout.frame()
    assert held is not None
    assert held.equals(expected)
    assert 60 <= held.height <= 180


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_the_share_is_met_and_partitions_differ(share: float) -> None:
    holdout = Holdout(share, 1_000)
    a, b = holdout.takes(rows(50_000)), holdout.takes(rows(50_000, partition="b"))
    assert a.mean() == pytest.approx(share, abs=0.005)
    assert (a & b).mean() == pytest.approx(share**2, abs=0.005)


def test_a_record_of_several_rows_is_held_out_whole() -> None:
    """What `unpivot` makes of one record is not learned in part."""
    frame = pl.concat([rows(500), rows(500)]).sort("_position")
    held = Holdout(0.1, 1_000).takes(frame).reshape(-1, 2)
    assert (held[:, 0] == held[:, 1]).all()
    holdout = Holdout(0.1, 1_000)
    holdout.add(frame)
    kept = holdout.frame()
    assert kept is not None
    assert kept.height == held.sum()


def test_the_newest_are_kept_and_a_row_read_again_counts_once() -> None:
    holdout = Holdout(0.5, 100)
    for start in range(0, 10 * 5 * MAX_FRAMES, 10):
        holdout.add(rows(10, start))
    for _ in range(3):
        holdout.add(rows(40, 10 * 5 * MAX_FRAMES - 40).with_columns(x=pl.lit(-1.0)))
    held = holdout.frame()
    assert held is not None
    assert held.height == 100
    assert held["_position"].n_unique() == 100
    assert held["_position"].is_sorted()
    again = held.filter(pl.col("_position") >= 10 * 5 * MAX_FRAMES - 40)
    assert again.height > 0
    assert (again["x"] == -1.0).all()
    assert (held["x"] == -1.0).sum() == again.height


def test_it_goes_on_from_a_snapshot_as_if_nothing_had_happened() -> None:
    whole, cut = Holdout(0.3, 50), Holdout(0.3, 50)
    for number in range(100):
        whole.add(rows(5, 5 * number))
        cut.add(rows(5, 5 * number))
        if number % 7 == 0:
            state, cut = cut.snapshot(), Holdout(0.3, 50)
            cut.restore(state)
    one, other = whole.frame(), cut.frame()
    assert one is not None
    assert other is not None
    assert one.equals(other)


def test_nothing_held_out_is_no_frame() -> None:
    assert Holdout(0.1, 10).frame() is None
