"""Which rows are held out: the same ones whatever the batches, the epoch, a restart, the name of
the file or the order of its columns; and of equal rows all or none, unless they are common."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.running.holdout import COMMON_COUNT, COMMON_SAMPLE_ROWS, MAX_FRAMES, Holdout
from engine.types import PART, RESERVED
from tests.size import examples


def rows(n: int, start: int = 0, partition: str = "a.csv", content: int = 0) -> pl.DataFrame:
    """Raw rows as a source gives them, each other than all others."""
    return pl.DataFrame({"_position": np.arange(start, start + n)}).select(
        pl.lit(partition).alias("_partition"), "_position",
        x=pl.col("_position") * 2.0 + content, y=pl.lit("a text"),
    )  # fmt: skip


def few(n: int, contents: int, start: int = 0, partition: str = "a.csv") -> pl.DataFrame:
    """Rows of so many contents, about as often each."""
    return rows(n, start, partition).with_columns(x=pl.col("_position") * 7919 % contents)


def hold(frame: pl.DataFrame, holdout: Holdout, rows: int = 100) -> NDArray[np.bool_]:
    """Ask and keep as the loop does, batch by batch."""
    cuts = range(rows, max(frame.height, rows + 1), rows)
    return fed(frame, [cut for cut in cuts if cut < frame.height], holdout)


def fed(frame: pl.DataFrame, cuts: list[int], holdout: Holdout) -> NDArray[np.bool_]:
    """The mask of all rows, in batches cut there."""
    masks = [np.zeros(0, np.bool_)]
    for start, stop in zip([0, *cuts], [*cuts, frame.height], strict=True):
        if stop > start:
            batch = frame[start:stop]
            masks.append(holdout.select(batch))
            holdout.add(batch, masks[-1])
    return np.concatenate(masks)


def kept(holdout: Holdout) -> pl.DataFrame:
    frame = holdout.frame()
    assert frame is not None
    return frame


@settings(max_examples=examples(15), deadline=None)
@given(
    cuts=st.lists(st.integers(0, 2_400), max_size=30),
    epochs=st.integers(1, 3),
    contents=st.sampled_from([1, 4, 300, 2_000]),
)
def test_no_cut_and_no_epoch_changes_which_rows(
    cuts: list[int], epochs: int, contents: int
) -> None:
    frame = pl.concat([few(1_200, contents), few(1_200, contents, 1_200, partition="b.csv")])
    whole = Holdout(0.2, 10_000)
    expected = whole.select(frame)
    whole.add(frame, expected)
    holdout = Holdout(0.2, 10_000)
    for _ in range(epochs):
        assert (fed(frame, sorted(cuts), holdout) == expected).all()
    assert kept(holdout).equals(kept(whole))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("contents", [1, 2, 50, 1_000_000])
def test_the_share_is_met(share: float, contents: int) -> None:
    frame = few(50_000, contents)
    assert Holdout(share, 1_000).select(frame).mean() == pytest.approx(share, abs=0.02)


def test_a_row_is_the_same_wherever_and_whenever_it_comes() -> None:
    """Renamed, moved, replayed, on another partition, its columns in another order, and with what a
    source says of where it comes from: the same contents are held out. Never is one learned that
    was judged."""
    first = rows(2_000).with_columns(offset=pl.col("_position"), _part=pl.lit("train"))
    later = first.reverse().select(
        pl.lit("b/other.csv").alias("_partition"), pl.int_range(7_000, 9_000).alias("_position"),
        "x", "y", offset=pl.int_range(7_000, 9_000), _part=pl.lit("test"),
    )  # fmt: skip
    assert PART in later.columns
    for order in ((first, later), (later, first)):
        holdout = Holdout(0.1, 10_000, ignored=("offset",))
        held = [frame.filter(hold(frame, holdout))["x"] for frame in order]
        assert set(held[0]) == set(held[1])
        assert 120 <= len(held[0]) <= 280
        assert kept(holdout)["x"].is_duplicated().sum() == 0, "judged once"
    turned = later.select(reversed(later.columns))
    alone = Holdout(0.1, 10_000, ignored=("offset",)).select(turned)
    assert set(later.filter(alone)["x"]) == set(held[0])


@pytest.mark.parametrize("contents", [1, 2, 20])
@pytest.mark.parametrize("n", [10, 300, 5_000])
def test_of_common_rows_a_share_is_held_out_and_the_rest_learned(contents: int, n: int) -> None:
    """Whole contents that are never learned would spoil the model: at most the first few rows."""
    for salt in range(30):
        frame = few(n, contents).with_columns(z=pl.lit(salt))
        held = Holdout(0.2, 10_000).select(frame)
        by = frame.with_columns(held=pl.Series(held)).group_by("x").agg(pl.col("held"))
        for taken in by["held"]:
            late = taken[COMMON_COUNT - 1 :]
            assert late.mean() in (None, pytest.approx(0.2, abs=0.5))
            if len(late) >= 100:
                assert late.mean() == pytest.approx(0.2, abs=0.15)


def test_a_row_that_was_learned_is_never_held_out_later() -> None:
    """Also where its content turns out to be common behind it, in whatever epoch."""
    for salt in range(10):
        frame = few(COMMON_SAMPLE_ROWS + 500, 400).with_columns(z=pl.lit(salt))
        holdout = Holdout(0.2, 10_000)
        masks = [hold(frame, holdout, size) for size in (70, 999, 5_000)]
        assert all((mask == masks[0]).all() for mask in masks)


def test_every_type_and_null_is_content() -> None:
    base = pl.DataFrame(
        {
            "a": [0] * 4,
            "f": [1.5, None, float("nan"), -0.0],
            "i": [1, None, 2**62, -1],
            "b": [True, None, False, False],
            "s": ["a", None, "", "a" * 300],
            "y": [b"a", None, b"", bytes(1_000)],
            "l": [[1, None], None, [], [2] * 200],
            "d": [{"p": 1, "q": "x"}, None, {"p": None, "q": None}, {"p": 1, "q": None}],
        }
    ).with_columns(
        m=pl.Series([1, None, 2, 3], dtype=pl.Decimal(20, 2)),
        t=pl.Series([1, None, 2, 3], dtype=pl.Datetime("us")),
        e=pl.Series(["u", None, "v", "v"], dtype=pl.Enum(["u", "v"])),
        r=pl.Series([[1, 2], None, [3, 4], [5, 6]], dtype=pl.Array(pl.Int8, 2)),
        n=pl.lit(None),
    )

    def chosen(content: pl.DataFrame) -> list[list[bool]]:
        frame = rows(4).select(RESERVED).hstack(content)
        shares = np.linspace(0.02, 0.98, 25)
        return [Holdout(share, 10).select(frame).tolist() for share in shares]

    before = chosen(base)
    for column in base.columns:
        changed = base.with_columns(pl.col(column).reverse())
        assert (chosen(changed) != before) == (column not in "an"), column


def test_a_record_of_several_rows_is_held_out_whole() -> None:
    """What `unpivot` makes of one record is not learned in part."""
    frame = pl.concat([rows(500), rows(500, content=1)]).sort("_position")
    holdout = Holdout(0.1, 1_000)
    held = hold(frame, holdout).reshape(-1, 2)
    assert (held[:, 0] == held[:, 1]).all()
    assert kept(holdout).height == held.sum() > 20


def test_content_that_a_learning_stage_has_made_is_not_asked() -> None:
    frame = rows(500)
    held = [
        Holdout(0.1, 10, by_content=False).select(f) for f in (frame, frame.with_columns(x=1.0))
    ]
    assert (held[0] == held[1]).all()
    assert 20 <= held[0].sum() <= 90


def test_the_newest_are_kept_and_a_row_read_again_counts_once() -> None:
    holdout = Holdout(0.5, 100)
    n = 10 * 5 * MAX_FRAMES
    for _ in range(3):
        hold(rows(n), holdout, 10)
    for _ in range(3):
        hold(rows(40, n - 40), holdout, 10)
    held = kept(holdout)
    assert held.height == 100
    assert held["_position"].n_unique() == 100
    assert held["_position"].is_sorted()
    again = rows(n, n, partition="b.csv", content=-2 * n)  # equal rows, elsewhere
    hold(again, holdout, 10)
    assert kept(holdout)["_partition"].unique().to_list() == ["b.csv"]
    assert kept(holdout)["x"].to_list() == held["x"].to_list()


def test_it_goes_on_from_a_snapshot_as_if_nothing_had_happened() -> None:
    whole, cut = Holdout(0.3, 50), Holdout(0.3, 50)
    for number in range(100):
        hold(few(15, 40 + number, 15 * number), whole)
        hold(few(15, 40 + number, 15 * number), cut)
        if number % 7 == 0:
            state, cut = cut.snapshot(), Holdout(0.3, 50)
            cut.restore(state)
    assert kept(whole).equals(kept(cut))


def test_nothing_held_out_is_no_frame() -> None:
    assert Holdout(0.1, 10).frame() is None
