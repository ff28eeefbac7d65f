"""Scores rows by how unlike the others they are, over all their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.kernels import MAX_ABS
from engine.columnar.statistics import Quantiles
from engine.scrub.base import LearnSettings
from engine.scrub.columns import expand_columns, extended, numbers
from engine.types import Batch, Name, Names, Schema, Snapshot, Stage, Transform
from engine.types.arrays import Floats
from engine.types.snapshots import FieldsSnapshot

SPARSE = 0.1
"""The share of a window's rows below which a node's children mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HalfSpaceForest(FieldsSnapshot):
    """Half-space trees: count how many rows of the last full window lie near a row.

    Tan, Ting and Liu, "Fast Anomaly Detection for Streaming Data" (2011). Each tree halves a
    region around the first window's rows again and again, in a column drawn at random; a row falls
    from the root to a leaf. What is counted on the way in one window judges the rows of the next.
    The region of a tree is drawn as in the paper, from smallest and largest number of each column;
    those too large for its arithmetic (`MAX_ABS`) lie outside.

    Every row is judged by full windows before it and nothing else, so the scores do not depend on
    how the stream is cut. A missing number falls into the upper half.

    Attributes:
        pending: rows of the first window until it is full, shape (n, columns).
        columns: that each node halves, shape (trees, 2**height - 1); empty before the first window
            is full, as are the next three.
        splits: where, same shape.
        reference: rows of the last full window in each node, shape (trees, 2**(height + 1) - 1).
        latest: rows of the window that is not full.
        rows: in the window that is not full.
        window, trees, height, seed: as in the settings of `Anomalies`.
    """

    pending: Floats
    columns: NDArray[np.int32]
    splits: Floats
    reference: NDArray[np.int32]
    latest: NDArray[np.int32]
    rows: int = 0
    window: int = 250
    n_trees: int = 25
    height: int = 8
    seed: int = 0

    @classmethod
    def empty(cls, columns: int, **options: int) -> Self:
        """Return a forest without rows."""
        none = np.zeros((0, 0), np.int32)
        return cls(
            pending=np.empty((0, columns)),
            columns=none,
            splits=np.zeros((0, 0)),
            reference=none,
            latest=none,
            **options,
        )

    def judge(self, rows: Floats, learn: int) -> tuple[Self, Floats]:
        """Return the forest after the first `learn` of these rows, and the anomaly score of
        each: 0 (all rows of a window lie in its leaves) to 1 (none lie near it); NaN before the
        first window is full.

        Args:
            rows: shape (n, columns), NaN for what is missing.
        """
        scores = np.full(len(rows), np.nan)
        if self.reference.size:
            return self._judged(rows, learn, scores)
        start = min(self.window - len(self.pending), learn)
        pending = np.concatenate((self.pending, rows[:start]))
        if len(pending) < self.window:
            return dataclasses.replace(self, pending=pending), scores
        return self._with_trees(pending)._judged(rows, learn, scores, start)

    def _judged(
        self, rows: Floats, learn: int, scores: Floats, start: int = 0
    ) -> tuple[Self, Floats]:
        reference, latest = self.reference.copy(), self.latest.copy()
        at = self.rows
        n_trees = (self.columns, self.splits, reference, latest)
        while start < len(rows):
            stop = min(start + self.window - at, len(rows)) if start < learn else len(rows)
            learned = max(min(stop, learn) - start, 0)
            _judge(rows[start:stop], *n_trees, learned, SPARSE * self.window, scores[start:stop])
            start, at = start + (learned or stop - start), at + learned
            if at == self.window:
                reference[:], latest[:], at = latest, 0, 0
        # The score of the paper rises with the mass: its logarithm spreads it over 0 ... 1.
        highest = np.log2(1.0 + self.window * 2.0**self.height)
        scores = 1.0 - np.log2(1.0 + scores / self.n_trees) / highest
        return dataclasses.replace(self, reference=reference, latest=latest, rows=at), scores

    def _with_trees(self, rows: Floats) -> Self:
        """Return the forest with trees for these rows, which become the reference."""
        rng = np.random.default_rng(self.seed)
        known = np.abs(rows) < MAX_ABS
        low = np.where(known, rows, np.inf).min(axis=0)
        high = np.where(known, rows, -np.inf).max(axis=0)
        low, high = np.where(low <= high, low, 0.0), np.where(low <= high, high, 1.0)
        width = np.where(high > low, high - low, 1.0)
        planted = [_tree(rng, low, width, self.height) for _ in range(self.n_trees)]
        columns, splits = (np.stack(part) for part in zip(*planted, strict=True))
        mass = np.zeros((self.n_trees, 2 ** (self.height + 1) - 1), np.int32)
        _judge(rows, columns, splits, mass.copy(), mass, len(rows), 0.0, np.empty(len(rows)))
        return dataclasses.replace(
            self,
            pending=rows[:0].copy(),
            columns=columns,
            splits=splits,
            reference=mass,
            latest=np.zeros_like(mass),
        )


class Anomalies(Stage):
    """Scores each row with half-space trees (see `HalfSpaceForest`): 0 for a typical row, 1 for one
    where no row of the last full window lies; adds the score, flags the highest, or rejects them.

    Rows of the first `window` are not judged: their score is 0. What counts as high is learned from
    the scores of the batches before, by the quantiles of a t-digest: about `contamination` of the
    rows do, whatever the data. All rows are learned from, so what was strange for a whole window is
    strange no more.
    """

    learns_by_batch = False

    class Settings(LearnSettings):
        """``[scrub.NAME]`` with ``kind = "anomalies"``

        Attributes:
            columns: numbers a row is judged by; names or globs.
            action: score (add the column `score`, Float64), flag (add it as Float32, 1 where a row
                scores high, else 0) or reject (the row, with reason ``anomaly``).
            score: name of the added column.
            contamination [share]: share of the rows that score high.
            window [rows]: rows that judge the next ones.
            n_trees: more are slower and judge more evenly.
            height: how often a tree halves; each more doubles its memory of 20 bytes a node.
            seed: of the random numbers.
        """

        columns: Names
        action: Literal["score", "flag", "reject"] = "score"
        score: Name = "anomaly"
        contamination: float = Field(0.01, gt=0, lt=1)
        window: int = Field(250, ge=10)
        n_trees: int = Field(25, ge=1, le=1_000)
        height: int = Field(8, ge=1, le=15)
        seed: int = Field(0, ge=0)

    def __init__(self, name: str, settings: Anomalies.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Anomalies.Settings = settings
        self._columns: tuple[str, ...] = ()
        self._rows = 0
        self._forest: HalfSpaceForest | None = None
        self._scores = Quantiles.empty(1)

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        self._columns = expand_columns(settings.columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        if self._forest is None:
            self._forest = HalfSpaceForest.empty(
                len(self._columns),
                window=settings.window,
                n_trees=settings.n_trees,
                height=settings.height,
                seed=settings.seed,
            )
        if settings.action == "reject":
            return schema
        dtype = pl.Float64() if settings.action == "score" else pl.Float32()
        new = {settings.score: dtype}
        return extended(schema, new, where=self.where, remedy="set another name in 'score'")

    def apply(self, batch: Batch) -> Batch:
        assert self._forest is not None
        cells = batch.frame.select(pl.col(self._columns).cast(pl.Float64))
        left = self.settings.rows_left(self._rows)
        learn = len(batch) if left is None else min(left, len(batch))
        scores = np.empty(0)
        limit = self._limit()
        if len(batch):
            self._forest, scores = self._forest.judge(cells.to_numpy(order="c"), learn)
        if learn:
            self._rows += learn
            self._scores = self._scores.update(scores[:learn, None])
        return self._marked(batch, np.nan_to_num(scores), limit)

    def _limit(self) -> float:
        """Return the score above which a row is anomalous; infinite while unknown."""
        (limit,) = self._scores.quantile(1 - self.settings.contamination)[0].tolist()
        return limit if limit == limit else np.inf

    def _marked(self, batch: Batch, scores: Floats, limit: float) -> Batch:
        settings = self.settings
        high = scores > limit
        if settings.action == "reject":
            detail = pl.format(
                f"Expected a score of {limit:.4f} or less; got {{}}.", pl.Series(scores).round(4)
            )
            text = pl.select(detail).to_series()
            keep = pl.Series(~high)
            done = batch.reject(keep, stage=self.name, reason="anomaly", detail=text)
        else:
            score = pl.Series(settings.score, scores)
            flag = pl.Series(settings.score, high.astype(np.float32))
            added = score if settings.action == "score" else flag
            done = batch.with_frame(batch.frame.with_columns(added))
        return done.counted(self.name, anomalies=int(high.sum()))

    def snapshot(self) -> Snapshot:
        """Return the rows learned, the forest's fields, and the digest of scores."""
        assert self._forest is not None
        forest, scores = self._forest.snapshot(), self._scores.snapshot()
        return {"rows": self._rows, "forest": forest, "scores": scores}

    def restore(self, value: Snapshot) -> None:
        self._rows = value["rows"]
        self._forest = HalfSpaceForest.restore(value["forest"])
        self._scores = Quantiles.restore(value["scores"])

    def transforms(self) -> Sequence[Transform] | None:
        """Return no transform if it changes no value (reject), else None: it reads whole rows."""
        return () if self.settings.action == "reject" else None


def _tree(
    rng: np.random.Generator, low: Floats, width: Floats, height: int
) -> tuple[NDArray[np.int32], Floats]:
    """Return column and split of each inner node, level by level."""
    middle = rng.random(len(low))
    reach = 2 * np.maximum(middle, 1 - middle)
    starts = (low + (middle - reach) * width)[None, :]
    stops = (low + (middle + reach) * width)[None, :]
    columns, splits = [], []
    for _ in range(height):
        nodes = np.arange(len(starts))
        column = rng.integers(0, len(low), len(starts))
        split = (starts[nodes, column] + stops[nodes, column]) / 2
        columns.append(column)
        splits.append(split)
        starts, stops = np.repeat(starts, 2, axis=0), np.repeat(stops, 2, axis=0)
        stops[2 * nodes, column] = split
        starts[2 * nodes + 1, column] = split
    return np.concatenate(columns).astype(np.int32), np.concatenate(splits)


@numba.njit(nogil=True, cache=True)
def _judge(rows, columns, splits, reference, latest, learn, sparse, out):  # type: ignore[no-untyped-def]
    """Write the paper's score of each row to `out`, higher where more rows lie: the mass of the
    last node with enough rows, times two per halving. Counts the first `learn` rows in `latest`."""
    inner = columns.shape[1]
    out[:] = 0.0
    for t in range(columns.shape[0]):
        for i in range(rows.shape[0]):
            node, weight, judged = 0, 1.0, False
            while True:
                mass = reference[t, node]
                if not judged and (node >= inner or mass <= sparse):
                    out[i] += mass * weight
                    judged = True
                    if i >= learn:
                        break
                if i < learn:
                    latest[t, node] += 1
                if node >= inner:
                    break
                upper = not rows[i, columns[t, node]] < splits[t, node]
                node = 2 * node + 1 + upper
                weight *= 2.0


__all__ = ["Anomalies", "HalfSpaceForest"]
