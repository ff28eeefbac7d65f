"""Augmentation of lists: what holds for any rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types.arrays import Ints
from models.augment.ragged import SynonymTable, changed_rows, filtered, kept_tokens, swapped
from tests.size import examples

lengths_of = st.lists(st.integers(0, 9), max_size=30)
shares = st.floats(0, 1)


def ends(lengths: list[int]) -> Ints:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def rows(values: Ints, offsets: Ints) -> list[list[int]]:
    return [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@settings(max_examples=examples(60), deadline=None)
@given(lengths=lengths_of, share=shares, seed=st.integers(0, 99))
def test_dropped_tokens_leave_the_order_and_one(
    lengths: list[int], share: float, seed: int
) -> None:
    offsets = ends(lengths)
    values = np.arange(offsets[-1])
    kept = kept_tokens(offsets, share, np.random.default_rng(seed))
    made, bounds = filtered(values, offsets, kept)
    assert bounds[0] == 0
    assert bounds[-1] == len(made)
    assert (np.diff(made) > 0).all()
    for before, after in zip(rows(values, offsets), rows(made, bounds), strict=True):
        assert set(after) <= set(before)
        assert bool(after) == bool(before)
        if share == 1:
            assert len(after) <= 1
        if share == 0:
            assert after == before


@settings(max_examples=examples(60), deadline=None)
@given(lengths=lengths_of, share=shares, seed=st.integers(0, 99))
def test_swapped_tokens_stay_in_their_row_and_move_by_one(
    lengths: list[int], share: float, seed: int
) -> None:
    offsets = ends(lengths)
    source = swapped(offsets, share, np.random.default_rng(seed))
    values = np.arange(offsets[-1])
    assert (np.abs(source - values) <= 1).all()
    for before, after in zip(rows(values, offsets), rows(source, offsets), strict=True):
        assert sorted(after) == before
        assert share > 0 or after == before
        if share == 1:
            assert sum(a != b for a, b in zip(before, after, strict=True)) >= len(before) - 2


@settings(max_examples=examples(60), deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(10, 19)), max_size=20),
    values=st.lists(st.integers(0, 12), max_size=60),
    share=shares,
    seed=st.integers(0, 99),
)
def test_a_token_is_replaced_by_one_of_its_likes(
    pairs: list[tuple[int, int]], values: list[int], share: float, seed: int
) -> None:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    given = np.array(values, np.int64)
    likes = SynonymTable.of(table[:, 0], table[:, 1])
    made = likes.replaced(given, share, np.random.default_rng(seed))
    allowed = {(a, b) for a, b in pairs}
    for before, after in zip(values, made.tolist(), strict=True):
        assert before == after or (before, after) in allowed
        assert share > 0 or before == after
        assert share < 1 or before not in {a for a, _ in pairs} or before != after
    assert given.tolist() == values


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_the_asked_one(share: float) -> None:
    lengths = np.full(2_000, 40)
    offsets, rng = ends(lengths.tolist()), np.random.default_rng(0)
    assert 1 - kept_tokens(offsets, share, rng).mean() == pytest.approx(share, abs=0.01)
    moved = swapped(offsets, share, rng) != np.arange(80_000)
    assert moved.mean() == pytest.approx(share * 39 / 40, abs=0.01)
    likes = SynonymTable.of(np.array([3, 3, 3, 5]), np.array([30, 31, 32, 50]))
    values = np.repeat([3, 5, 7, 3], 20_000)
    made = likes.replaced(values, share, rng)
    assert (made != values).reshape(4, -1).mean(1) == pytest.approx(
        [share, share, 0, share], abs=0.02
    )
    new = made[made >= 30]
    thirds = np.bincount(new[new < 40] - 30) / (new < 40).sum()
    assert thirds == pytest.approx([1 / 3] * 3, abs=0.02)


def test_rows_that_changed_are_counted() -> None:
    changed = np.array([True, False, False, True, True])
    assert changed_rows(ends([2, 0, 1, 2]), changed) == 2
    assert changed_rows(ends([]), np.empty(0, np.bool_)) == 0
