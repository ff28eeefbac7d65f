"""Fills missing numbers from the other columns."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.statistics import CoMoments, inverse, matrix
from engine.scrub.base import FittedStage, ForgetSettings
from engine.scrub.columns import RENAME, expand_columns, extended, is_missing, numbers, replaced
from engine.scrub.fusion import FILLED_BEFORE_LEARNING
from engine.types import Batch, Names, Schema, Transform, UserError
from engine.types.arrays import Floats
from engine.types.changes import Neutral

AT_ONCE = 1 << 22
"""The numbers of the linear systems solved in one call."""


class Impute(FittedStage):
    """Fills missing numbers (null, NaN) with the prediction of a ridge regression from the row's
    other numbers.

    The regression on any of the columns follows from their means and products over the complete
    rows of the batches before (Beale and Little, "Missing Values in Multivariate Analysis", 1975):
    one linear system for each set of columns that are missing together in a batch, however many
    rows miss them. Hoerl and Kennard's penalty ("Ridge Regression", 1970) is on standardized
    columns; with one column missing the result is that of scikit-learn's
    ``make_pipeline(StandardScaler(), Ridge(alpha))`` on the same complete rows.

    Until `min_rows` complete rows are learned, and where a column did not vary in them, its mean
    stands in (0 while it never had a number). Infinity helps to predict nothing and stays as it is.
    Filled columns become Float64, but Float32 stays. Where hardly a row is complete, name fewer
    columns.

    State: 24 bytes a column and 8 a pair of columns.
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "impute"``

        Attributes:
            columns: those that are filled, and predict each other; names or globs.
            predictors: those that help to predict and are not filled; names or globs.
            alpha: the penalty; the more, the nearer to the mean.
            min_rows [rows]: complete rows to learn before anything is predicted.
            indicator: add ``<column>_missing`` (Float32): 1 where the value was missing, else 0.
        """

        columns: Neutral[Names]
        predictors: Names = ()
        alpha: float = Field(1.0, gt=0, allow_inf_nan=False)
        min_rows: int = Field(100, ge=2)
        indicator: bool = False

    untaught = "gaps become 0"

    def __init__(self, name: str, settings: Impute.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Impute.Settings = settings
        self._schema: Schema = {}
        self._filled: tuple[str, ...] = ()

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        self._filled = expand_columns(settings.columns, schema, where=self.where)
        predictors = (
            expand_columns(settings.predictors, schema, where=self.where)
            if settings.predictors
            else ()
        )
        self._columns = tuple(dict.fromkeys((*self._filled, *predictors)))
        numbers(self._columns, schema, where=self.where)
        if len(self._columns) < 2:
            raise UserError(
                f"{self.where} has only column '{self._columns[0]}', which nothing can predict: "
                "name more columns, or use a 'missing' stage."
            )
        self._schema = schema
        self._begin(CoMoments.empty(len(self._columns)))
        after = {**schema, **{c: self._kind(c) for c in self._filled}}
        if not settings.indicator:
            return after
        flags = {f"{c}_missing": pl.Float32() for c in self._filled}
        return extended(after, flags, where=self.where, remedy=f"take 'indicator' out, or {RENAME}")

    def _kind(self, column: str) -> pl.DataType:
        return self._schema[column] if self._schema[column].is_float() else pl.Float64()

    def apply(self, batch: Batch) -> Batch:
        frame = batch.frame
        missing = frame.select(is_missing(c, self._schema[c]).alias(c) for c in self._filled)
        holes = missing.to_numpy().T
        at = np.flatnonzero(holes.any(axis=0))
        columns = [frame.get_column(c).cast(self._kind(c)) for c in self._filled]
        if len(at):
            predictions = self._predict_missing(matrix(frame[at].select(self._columns)))
            columns = [self._with(x, holes[j], at, predictions[j]) for j, x in enumerate(columns)]
        done = replaced(frame, columns)
        if self.settings.indicator:
            done = done.with_columns(
                missing.select(pl.all().cast(pl.Float32).name.suffix("_missing"))
            )
        unfitted = holes[self._unfitted]
        early = {FILLED_BEFORE_LEARNING: int(unfitted.sum())} if unfitted.any() else {}
        self._learn(batch)
        return batch.with_frame(done).counted(
            self.name, filled=int(holes.sum()), **early, **self._too_large.counts()
        )

    @property
    def _unfitted(self) -> NDArray[np.bool_]:
        """Return for which columns to fill no value was learned yet, shape (columns to fill,)."""
        learned = self._statistic
        assert isinstance(learned, CoMoments)
        return np.asarray(learned.single.count[: len(self._filled)] == 0)

    def _with(
        self,
        column: pl.Series,
        holes: NDArray[np.bool_],
        at: NDArray[np.int64],
        predictions: Floats,
    ) -> pl.Series:
        here = np.flatnonzero(holes)
        values = pl.Series(predictions[holes[at]], dtype=column.dtype)
        return column.scatter(here, values) if len(here) else column

    def _predict_missing(self, rows: Floats) -> Floats:
        """Return the expected value of each number, given the others of its row.

        Args:
            rows: shape (columns, n), NaN for what is not there.

        Returns: same shape; what is there is left undefined.
        """
        learned = self._statistic
        assert isinstance(learned, CoMoments)
        predictions = np.repeat(learned.single.mean[:, None], rows.shape[1], axis=1)
        if learned.complete < self.settings.min_rows:
            return predictions
        scale = inverse(learned.deviation)
        z = (rows - learned.mean[:, None]) * scale[:, None]
        present = ~np.isnan(rows) & (scale > 0)[:, None]
        patterns, which = _patterns(present)
        products = learned.products * np.outer(scale, scale)
        size = max(AT_ONCE // len(products) ** 2, 1)
        for start in range(0, len(patterns), size):
            part = patterns[start : start + size]
            weights = _weights(products, part, self.settings.alpha)
            here = np.flatnonzero((which >= start) & (which < start + size))
            predicted = np.empty((len(rows), len(here)))
            _predict(np.where(present, z, 0.0)[:, here], which[here] - start, weights, predicted)
            predictions[:, here] = predicted * learned.deviation[:, None] + learned.mean[:, None]
        return np.where((scale > 0)[:, None], predictions, learned.single.mean[:, None])

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: a model file has only single-column transforms."""
        return None


def _patterns(present: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return the distinct columns of `present`, shape (patterns, columns), and the index of
    each."""
    packed = np.packbits(present, axis=0).T
    packed_patterns, which = np.unique(packed, axis=0, return_inverse=True)
    patterns = np.unpackbits(packed_patterns, axis=1, count=len(present)).astype(np.bool_)
    return patterns, which.reshape(-1)


def _weights(products: Floats, present: NDArray[np.bool_], alpha: float) -> Floats:
    """Return the weights that predict each column from the standardized numbers of a row, shape
    (patterns, columns, columns); 0 for absent ones."""
    both = present[:, :, None] & present[:, None, :]
    system = np.where(both, products, 0.0)
    diagonal = np.arange(len(products))
    system[:, diagonal, diagonal] = np.where(present, products[diagonal, diagonal] + alpha, 1.0)
    wanted = np.where(present[:, :, None], products, 0.0)
    solution: Floats = np.linalg.solve(system, wanted)
    return solution


@numba.njit(nogil=True, cache=True)
def _predict(z, which, weights, out):  # type: ignore[no-untyped-def]
    columns, n = z.shape
    for r in range(n):
        w = weights[which[r]]
        for j in range(columns):
            out[j, r] = 0.0
        for i in range(columns):
            if z[i, r] != 0:
                for j in range(columns):
                    out[j, r] += z[i, r] * w[i, j]


__all__ = ["Impute"]
