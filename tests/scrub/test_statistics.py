"""Statistics: parts merged equal the whole, and the whole equals numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from river import stats
from sklearn.preprocessing import StandardScaler

from engine.columnar.statistics import (
    MAX_WIDTH,
    CoMoments,
    Counts,
    Extremes,
    FadingMoments,
    Moments,
    NumberBlock,
    Quantiles,
    Statistic,
)
from tests.size import examples

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 1e200])
BLOCKS = arrays(np.float64, st.tuples(st.integers(0, 40), st.just(3)), elements=NUMBERS)
SIZES = st.lists(st.integers(0, 20), max_size=5)


def parts(block: NDArray[np.float64], sizes: list[int]) -> list[NDArray[np.float64]]:
    return np.split(block, np.minimum(np.cumsum(sizes), len(block)))


def numbers(column: NDArray[np.float64], limit: float = 1e140) -> NDArray[np.float64]:
    return column[np.abs(column) < limit]


@settings(max_examples=examples(100), deadline=None)
@given(block=BLOCKS, sizes=SIZES)
def test_moments_of_parts_are_numpys_of_the_whole(
    block: NDArray[np.float64], sizes: list[int]
) -> None:
    learned, merged = Moments.empty(3), Moments.empty(3)
    for part in parts(block, sizes):
        learned = learned.update(part)
        merged = Moments.empty(3).update(part).merge(merged)
    for moments in (learned, merged):
        for j, column in enumerate(map(numbers, block.T)):
            assert moments.count[j] == len(column)
            if len(column):
                scale = max(1.0, float(np.abs(column).max()))
                assert moments.mean[j] == pytest.approx(column.mean(), rel=1e-9, abs=1e-9 * scale)
                assert moments.m2[j] == pytest.approx(
                    column.var() * len(column), rel=1e-9, abs=1e-9 * scale**2
                )


@settings(max_examples=examples(100), deadline=None)
@given(block=BLOCKS, sizes=SIZES)
def test_extremes_of_parts_are_numpys_of_the_whole(
    block: NDArray[np.float64], sizes: list[int]
) -> None:
    extremes = Extremes.empty(3)
    for part in parts(block, sizes):
        extremes = extremes.merge(Extremes.empty(3).update(part))
    for j, column in enumerate(numbers(column, 1e290) for column in block.T):
        assert extremes.count[j] == len(column)
        assert extremes.low[j] == (column.min() if len(column) else math.inf)
        assert extremes.high[j] == (column.max() if len(column) else -math.inf)


@settings(max_examples=examples(100), deadline=None)
@given(block=BLOCKS, sizes=SIZES, halflife=st.floats(1, 100))
def test_fading_moments_of_parts_are_polars_of_the_whole(
    block: NDArray[np.float64], sizes: list[int], halflife: float
) -> None:
    empty = FadingMoments.empty(3, halflife)
    learned, merged = empty, empty
    for part in parts(block, sizes):
        learned = learned.update(part)
    for part in reversed(parts(block, sizes)):  # each put before those that came after it
        merged = empty.update(part).merge(merged)
    for moments in (learned, merged):
        for j, column in enumerate(map(numbers, block.T)):
            assert moments.count[j] == len(column)
            if len(column):
                series = pl.Series(column)
                scale = max(1.0, float(np.abs(column).max()))
                mean = series.ewm_mean(half_life=halflife)[-1]
                variance = series.ewm_var(half_life=halflife, bias=True)[-1]
                assert moments.mean[j] == pytest.approx(mean, rel=1e-9, abs=1e-9 * scale)
                assert moments.variance[j] == pytest.approx(variance, rel=1e-9, abs=1e-9 * scale**2)


def test_fading_moments_are_rivers_once_the_first_row_has_faded() -> None:
    rng = np.random.default_rng(4)
    column = np.where(np.arange(4_000) < 2_500, 10.0, -5.0) + rng.normal(0, 2, 4_000)
    factor = 0.02
    halflife = math.log(0.5) / math.log(1 - factor)
    mean, variance = stats.EWMean(factor), stats.EWVar(factor)
    learned = FadingMoments.empty(1, halflife)
    for at in range(0, 4_000, 500):
        for x in column[at : at + 500].tolist():
            mean.update(x)
            variance.update(x)
        learned = learned.update(column[at : at + 500, None])
        if at >= 1_500:
            assert learned.mean[0] == pytest.approx(mean.get(), rel=1e-9)
            assert learned.variance[0] == pytest.approx(variance.get(), rel=1e-9)


@settings(max_examples=examples(100), deadline=None)
@given(block=BLOCKS, sizes=SIZES)
def test_products_of_parts_are_numpys_of_the_whole(
    block: NDArray[np.float64], sizes: list[int]
) -> None:
    learned, merged = CoMoments.empty(3), CoMoments.empty(3)
    for part in parts(block, sizes):
        learned = learned.update(part)
        merged = CoMoments.empty(3).update(part).merge(merged)
    good = block[(np.abs(block) < 1e140).all(axis=1)]
    scale = max(1.0, float(np.abs(good).max(initial=0.0)))
    whole = Moments.empty(3).update(block)
    for moments in (learned, merged):
        assert moments.complete == len(good)
        assert moments.single.count.tolist() == whole.count.tolist()
        np.testing.assert_allclose(moments.single.mean, whole.mean, rtol=1e-9, atol=1e-9 * scale)
        if len(good):
            wanted = np.cov(good.T, bias=True) * len(good)
            np.testing.assert_allclose(moments.mean, good.mean(axis=0), atol=1e-9 * scale)
            np.testing.assert_allclose(moments.products, wanted, rtol=1e-9, atol=1e-9 * scale**2)


@pytest.mark.parametrize("statistic", [Moments.empty(1), CoMoments.empty(1)])
def test_the_largest_numbers_that_count_overflow_nothing(statistic: Any) -> None:
    """However many there are: here 1e12."""
    column = np.where(np.arange(1_000) % 2, 0.99e140, -0.99e140)[:, None]
    learned = statistic.update(column)
    for _ in range(30):
        learned = learned.merge(learned)
    assert learned.deviation == pytest.approx([0.99e140], rel=1e-9)


def test_a_digest_of_a_survey_counts_what_is_not_squared() -> None:
    column = np.array([1e200, 2e200, 3e200, -1e289, math.inf, 1e291])[:, None]
    assert Quantiles.of(column).count.tolist() == [0]
    digest = Quantiles.of(column, MAX_WIDTH)
    assert digest.count.tolist() == [4]
    assert digest.quantile(0, 1)[:, 0].tolist() == [-1e289, 3e200]


def test_deviation_is_scikit_learns() -> None:
    block = np.random.default_rng(0).normal(1e9, 1, (5000, 4))
    block[:, 3] = 0.1  # constant but for rounding
    scaler = StandardScaler().fit(block)
    moments = Moments.empty(4)
    for part in np.split(block, 10):
        moments = moments.update(part)
    np.testing.assert_allclose(moments.mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(moments.deviation[:3], np.sqrt(scaler.var_)[:3], rtol=1e-6)
    assert moments.deviation[3] == 0


def test_frames_of_every_number_type() -> None:
    frame = pl.DataFrame(
        {"i": [1, None, 3], "f": pl.Series([0.5, math.nan, 1.5], dtype=pl.Float32), "n": [None] * 3}
    ).cast({"n": pl.Float64})
    moments, extremes = Moments.empty(3).update(frame), Extremes.empty(3).update(frame)
    assert moments.count.tolist() == [2, 2, 0]
    assert moments.mean.tolist() == [2.0, 1.0, 0.0]
    assert moments.deviation.tolist() == [1.0, 0.5, 0.0]
    assert extremes.low.tolist() == [1.0, 0.5, math.inf]
    assert Quantiles.empty(3).update(frame).quantile(0.0, 1.0)[:, :2].tolist() == [
        [1.0, 0.5],
        [3.0, 1.5],
    ]


ORDERS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "shuffled": lambda x: x,
    "sorted": np.sort,
    "reversed": lambda x: np.sort(x)[::-1],
    "interleaved": lambda x: np.concatenate([np.sort(x)[i::97] for i in range(97)]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows", [100, 5000])
def test_quantiles_keep_their_stated_error(order: str, rows: int) -> None:
    rng = np.random.default_rng(1)
    columns = [rng.normal(1e6, 1, 60_000), rng.exponential(1, 60_000) ** 3, rng.poisson(9, 60_000)]
    block = np.stack([ORDERS[order](c.astype(float)) for c in columns], axis=1)
    digest, other = Quantiles.empty(3), Quantiles.empty(3)
    for i, at in enumerate(range(0, len(block), rows)):
        part = block[at : at + rows]
        digest, other = (digest.update(part), other) if i % 2 else (digest, other.update(part))
    merged = digest.merge(other)
    assert merged.count.tolist() == [60_000] * 3
    for q in (0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0):
        for j, value in enumerate(merged.quantile(q)[0]):
            column = np.sort(block[:, j])
            low = np.searchsorted(column, value, "left") / len(column)
            high = np.searchsorted(column, value, "right") / len(column)
            assert low - 0.005 <= q <= high + 0.005, (order, q, j)
    assert merged.quantile(0.0)[0].tolist() == block.min(axis=0).tolist()
    assert merged.quantile(1.0)[0].tolist() == block.max(axis=0).tolist()


@settings(max_examples=examples(60), deadline=None)
@given(block=BLOCKS, sizes=SIZES)
def test_quantiles_lie_between_the_extremes_and_rise(
    block: NDArray[np.float64], sizes: list[int]
) -> None:
    digest = Quantiles.empty(3)
    for part in parts(block, sizes):
        digest = digest.update(part)
    answers = digest.quantile(0.0, 0.25, 0.5, 0.75, 1.0)
    for j, column in enumerate(map(numbers, block.T)):
        assert digest.count[j] == len(column)
        if len(column):
            assert (np.diff(answers[:, j]) >= -1e-9 * np.abs(column).max()).all()
            assert (answers[0, j], answers[-1, j]) == (column.min(), column.max())
        else:
            assert np.isnan(answers[:, j]).all()


TEXTS = st.lists(st.none() | st.sampled_from("abcdefgh"), max_size=60)


@settings(max_examples=examples(100), deadline=None)
@given(texts=TEXTS, sizes=SIZES)
def test_counts_are_exact_while_they_fit(texts: list[str | None], sizes: list[int]) -> None:
    counts = Counts.empty(1, size=8)
    for part in np.split(np.array(texts, object), np.minimum(np.cumsum(sizes), len(texts))):
        counts = counts.update(pl.DataFrame({"t": pl.Series(part.tolist(), dtype=pl.String)}))
    table = counts.tables[0]
    expected = Counter(text for text in texts if text is not None)
    assert dict(table.rows()) == expected
    assert expected[counts.top[0]] == max(expected.values(), default=0)


@settings(max_examples=examples(100), deadline=None)
@given(texts=TEXTS, sizes=SIZES, size=st.integers(1, 4))
def test_counts_keep_their_stated_error(
    texts: list[str | None], sizes: list[int], size: int
) -> None:
    halves = [Counts.empty(1, size=size), Counts.empty(1, size=size)]
    pieces = np.split(np.array(texts, object), np.minimum(np.cumsum(sizes), len(texts)))
    for i, part in enumerate(pieces):
        frame = pl.DataFrame({"t": pl.Series(part.tolist(), dtype=pl.String)})
        halves[i % 2] = halves[i % 2].update(frame)
    merged = dict(halves[0].merge(halves[1]).tables[0].rows())
    assert len(merged) <= size
    expected = Counter(text for text in texts if text is not None)
    slack = sum(expected.values()) / (size + 1)
    for text, n in expected.items():
        assert n - slack <= merged.get(text, 0) <= n


BLOCK: NumberBlock = np.array([[1.0, math.nan], [2.0, 5.0]])


@pytest.mark.parametrize("kind", [Moments, CoMoments, FadingMoments, Extremes, Quantiles, Counts])
def test_snapshot_and_restore(kind: type[Statistic], same: Any) -> None:
    statistic = kind.empty(2).update(BLOCK)
    snapshot = statistic.snapshot()
    restored = kind.restore(snapshot)
    assert same(restored.snapshot(), snapshot)
    assert same(restored.update(BLOCK).snapshot(), statistic.update(BLOCK).snapshot())
    assert same(statistic.snapshot(), snapshot)
    assert not same(statistic.update(BLOCK).snapshot(), snapshot)


@pytest.mark.parametrize("kind", [Moments, CoMoments, FadingMoments, Extremes, Quantiles, Counts])
def test_no_rows_teach_nothing(kind: type[Statistic], same: Any) -> None:
    statistic = kind.empty(2).update(BLOCK)
    assert same(statistic.update(np.empty((0, 2))).snapshot(), statistic.snapshot())
