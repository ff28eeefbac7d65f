"""Half-space trees: as good as River's, exact to the row, and what the stage makes of scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import anomaly, preprocessing
from sklearn.metrics import roc_auc_score

from engine.scrub.watching.anomalies import HalfSpaceForest
from engine.types import Batch
from tests.size import examples

Run = Callable[..., list[Batch]]
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def clusters(rows: int, seed: int, share: float = 0.01) -> tuple[Matrix, np.ndarray[Any, Any]]:
    """Four clusters of six columns, and rows anywhere; which are those."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 5, (4, 6))
    x = centres[rng.integers(0, 4, rows)] + rng.normal(0, 1, (rows, 6))
    strange = rng.random(rows) < share
    x[strange] = rng.uniform(-12, 12, (strange.sum(), 6))
    return x, strange


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_ranked_as_well_as_by_river(seed: int) -> None:
    x, strange = clusters(5_000, seed)
    _, ours = HalfSpaceForest.empty(6).judge(x, len(x))
    model = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=seed)
    theirs = []
    for row in x.tolist():
        named = dict(enumerate(row))
        theirs.append(model.score_one(named))
        model.learn_one(named)
    judged = slice(500, None)  # River's first window says nothing
    auc = roc_auc_score(strange[judged], ours[judged])
    assert auc >= roc_auc_score(strange[judged], theirs[judged]) - 0.002
    assert auc > 0.97


def test_numbers_too_large_lie_outside_the_regions() -> None:
    """Trees are drawn as without them, and they score high."""
    x, _ = clusters(200, 5)
    options = {"window": 40, "n_trees": 3, "height": 4}
    missing, large = x.copy(), x.copy()
    missing[3], large[3] = math.nan, 1e308
    large[4], missing[4] = -1e308, math.nan
    without, _ = HalfSpaceForest.empty(6, **options).judge(missing, 200)
    forest, _ = HalfSpaceForest.empty(6, **options).judge(large, 200)
    np.testing.assert_array_equal(forest.splits, without.splits)
    _, (typical, outside) = forest.judge(np.stack([x[5], large[3]]), 0)
    assert outside > typical


@settings(max_examples=examples(30), deadline=None)
@given(sizes=st.lists(st.integers(0, 90), max_size=6), learn=st.integers(0, 200))
def test_cuts_do_not_matter(sizes: list[int], learn: int, same: Any) -> None:
    x, _ = clusters(200, 5)
    x[::7, 2] = math.nan
    options = {"window": 40, "n_trees": 3, "height": 4}
    whole, wanted = HalfSpaceForest.empty(6, **options).judge(x, learn)
    forest, scores = HalfSpaceForest.empty(6, **options), []
    bounds = [0, *np.minimum(np.cumsum(sizes), 200).tolist(), 200]
    for start, stop in pairwise(bounds):
        forest, part = forest.judge(x[start:stop], min(max(learn - start, 0), stop - start))
        scores.append(part)
    assert np.array_equal(np.concatenate(scores), wanted, equal_nan=True)
    assert same(forest.snapshot(), whole.snapshot())


def test_each_row_is_counted_once_at_every_level() -> None:
    x, _ = clusters(300, 6)
    forest, _ = HalfSpaceForest.empty(6, window=100, n_trees=4, height=5).judge(x[:250], 250)
    for masses, rows in ((forest.reference, 100), (forest.latest, 50)):
        for level in range(6):
            nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
            assert masses[:, nodes].sum(axis=1).tolist() == [rows] * 4
    inner = forest.reference[:, :31]
    children = forest.reference[:, 1::2] + forest.reference[:, 2::2]
    assert np.array_equal(inner, children)


def test_scores_lie_between_0_and_1() -> None:
    x, _ = clusters(2_000, 7)
    x[1_000] = 1e9
    x[1_001] = math.nan
    x[1_002] = [math.inf, -math.inf] * 3
    _, scores = HalfSpaceForest.empty(6).judge(x, len(x))
    assert np.isnan(scores[:250]).all()
    assert ((scores[250:] >= 0) & (scores[250:] <= 1)).all()
    assert scores[1_000] > np.nanquantile(scores, 0.99)
    same, alike = HalfSpaceForest.empty(1).judge(np.full((600, 1), 3.0), 600)
    assert alike[-1] == pytest.approx(0)
    assert same.judge(np.array([[-9.0]]), 0)[1][0] == pytest.approx(1)


def test_what_stays_is_strange_no_more(run: Run) -> None:
    rng = np.random.default_rng(8)
    x = np.concatenate((rng.normal(0, 1, 3_000), rng.normal(9, 1, 2_000)))
    (done,) = run("anomalies", {"columns": ["x"]}, pl.DataFrame({"x": x}))
    score = done.frame["anomaly"].to_numpy()
    assert score[:250].tolist() == [0.0] * 250
    assert score[3_000:3_200].mean() > 2 * score[2_000:3_000].mean()
    assert score[3_500:].mean() < score[2_000:3_000].mean()


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_about_the_share_is_marked_or_goes(run: Run, share: float) -> None:
    x, strange = clusters(20_000, 9)
    names = [f"c{j}" for j in range(6)]
    parts = [pl.DataFrame(x[at : at + 1_000], schema=names) for at in range(0, 20_000, 1_000)]
    options = {"columns": ["*"], "contamination": share}
    flagged = run("anomalies", {**options, "action": "flag", "score": "odd"}, *parts)
    flags = np.concatenate([b.frame["odd"].to_numpy() for b in flagged])
    assert flags.dtype == np.float32
    assert flags[2_000:].mean() == pytest.approx(share, rel=0.25)
    assert flags[2_000:][strange[2_000:]].mean() > (0.5 if share < 0.05 else 0.95)
    assert sum(b.counts["s", "anomalies"] for b in flagged) == flags.sum()
    kept = run("anomalies", {**options, "action": "reject"}, *parts)
    assert [len(b) for b in kept] == [int((b.frame["odd"] == 0).sum()) for b in flagged]
    reject = kept[-1].rejects[0]
    assert reject.reason == "anomaly"
    assert reject.rows["detail"][0].startswith("Expected a score of 0.")


def test_frozen_it_learns_nothing_more(run: Run) -> None:
    x, _ = clusters(1_500, 10)
    names = [f"c{j}" for j in range(6)]
    first, again = (pl.DataFrame(x[s], schema=names) for s in (slice(500), slice(500, None)))
    options = {"columns": ["*"], "freeze_after": 500}
    _, once, twice = run("anomalies", options, first, again, again)
    assert once.frame["anomaly"].equals(twice.frame["anomaly"])
