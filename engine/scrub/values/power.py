"""Makes skewed numbers symmetric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.kernels import (
    MAX_ABS,
    any_infinite,
    inverse_power_transform,
    power_columns,
    power_transform,
    scale_columns,
)
from engine.columnar.statistics import Quantiles, inverse
from engine.scrub.base import FittedStage, ForgetSettings
from engine.scrub.columns import expand_columns, numbers, replaced
from engine.types import Affine, Batch, Names, Power, Scale, Schema, Snapshot, Transform, UserError
from engine.types.arrays import Floats
from engine.types.changes import Neutral
from engine.types.plural import counted

REFIT_GROWTH = 1.1
"""The growth of a column's numbers after which exponents are fitted again: ever more rarely, so
that later stages see them almost constant."""
LOW, HIGH = -4.0, 6.0
"""The range of exponents; 1, in the middle, changes nothing."""
DIGITS = 9.0
"""The largest logarithm by which a negative exponent may shrink all numbers of a column: beside
the 1 in ((1 + x)**l - 1) / l they lose four of their sixteen digits."""
SECTIONS = 45
"""The golden-section steps until an exponent is known to 4e-9."""


class Powers(FittedStage):
    """``log``: log(1 + |x|) with the sign of x. ``yeo-johnson``: a given power, or the one that
    makes a column most similar to a normal distribution (Yeo and Johnson, "A New Family of Power
    Transformations to Improve Normality or Symmetry", 2000); see `engine.types.Power`. Float64.

    Exponents maximize the likelihood over a t-digest of the batches before, in place of the numbers
    themselves (`engine.columnar.statistics.Quantiles`): for 1,000 numbers or more they are within
    0.005 of those that scikit-learn's PowerTransformer finds with all numbers at hand. They lie
    within -4 and 6, and so that no more than four digits are lost. They are 1, which changes
    nothing, until `min_rows` numbers are learned and where a column does not vary, and are fitted
    again with every tenth more numbers: set `freeze_after` where what comes later must not see them
    move. The first 16 rows are changed by the rows before and themselves, up to the 128th whole
    blocks by those before.

    Null stays null, NaN stays NaN. A number whose power float64 cannot hold becomes infinite; it is
    counted (``overflowed``), and nothing is standardized by it.
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "power"``

        Attributes:
            columns: names or globs.
            method: yeo-johnson or log.
            exponent: for yeo-johnson, the parameter for all columns, instead of a learned one.
            standardize: make mean 0 and deviation 1 of the result, by those of the digest at the
                fit (within 0.01 deviations). By default where the exponent is learned.
            min_rows [numbers]: numbers a column must have learned before it is fitted.
        """

        columns: Neutral[Names]
        method: Literal["yeo-johnson", "log"] = "yeo-johnson"
        exponent: float | None = Field(None, ge=LOW, le=HIGH)
        standardize: bool | None = None
        min_rows: int = Field(100, ge=2)

    def __init__(self, name: str, settings: Powers.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Powers.Settings = settings
        self._fitted: NDArray[np.int64] = np.empty(0, np.int64)
        self._numbers: Floats = np.empty((0, 0))
        self._overflowed: dict[str, tuple[int, float]] = {}
        """Column -> how many of its numbers became infinite, and the first of them."""

    @property
    def _fits(self) -> bool:
        return self.settings.method == "yeo-johnson" and self.settings.exponent is None

    @property
    def _standardizes(self) -> bool:
        given = self.settings.standardize
        return self._fits if given is None else given

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        if settings.method == "log" and settings.exponent is not None:
            raise UserError(
                f"{self.where} has an 'exponent', which only method 'yeo-johnson' uses: take it "
                "away."
            )
        self._columns = expand_columns(settings.columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        learns = self._fits or self._standardizes
        given = settings.rows_left(0) is not None or settings.forget_on is not None
        if not learns and given:
            raise UserError(
                f"{self.where} has 'learn', 'freeze_after' or 'forget_on', but learns nothing: "
                "take it away, or set standardize = true."
            )
        n = len(self._columns)
        if self._numbers.shape[1] != n:
            exponent = 1.0 if settings.exponent is None else settings.exponent
            above, below = (0.0, 0.0) if settings.method == "log" else (exponent, 2 - exponent)
            scale = 0.0 if self._standardizes else 1.0
            self._numbers = np.repeat([[above], [below], [0.0], [scale]], n, axis=1)
            self._fitted = np.zeros(n, np.int64)
        if learns:
            self._begin(Quantiles.empty(n))
        return {**schema, **dict.fromkeys(self._columns, pl.Float64())}

    def apply(self, batch: Batch) -> Batch:
        done = self._passed(batch)
        overflowed = self._overflows(batch.frame, done.frame)
        return done.counted(self.name, overflowed=overflowed) if overflowed else done

    def _overflows(self, before: pl.DataFrame, after: pl.DataFrame) -> int:
        """Note the numbers that became infinite; return how many."""
        found = 0
        for column in self._columns:
            powers = after.get_column(column)
            if not any_infinite(powers):
                continue
            infinite = powers.is_infinite()
            given = before.get_column(column).cast(pl.Float64)
            numbers = given.filter(infinite & given.is_finite())
            if len(numbers):
                n, first = self._overflowed.get(column, (0, float(numbers[0])))
                self._overflowed[column] = n + len(numbers), first
                found += len(numbers)
        return found

    def remarks(self) -> list[str]:
        """Return those of every stage that learns, and a sentence for each column with numbers that
        became infinite."""
        return [
            *super().remarks(),
            *(
                f"{self.where} made {counted(n, 'number')} of column '{column}' infinite (the "
                f"first: {first:g}): float64 cannot hold their power. Divide the column in a "
                "'derive' stage before it, bound it in an 'outliers' stage, or give an exponent "
                "nearer to 1."
                for column, (n, first) in self._overflowed.items()
            ),
        ]

    def _noted(self) -> Scale | None:
        """Return the current scale; exponents hardly move."""
        return self._scale(*self._numbers[2:].copy()) if self._standardizes else None

    def _changed(self, frame: pl.DataFrame) -> list[pl.Series]:
        above, below, shift, scale = self._effects()
        powers = power_columns([frame.get_column(c) for c in self._columns], above, below)
        return scale_columns(powers, shift, scale) if self._standardizes else powers

    def _take(self, frame: pl.DataFrame) -> None:
        super()._take(frame)
        self._fit()

    @property
    def scaled(self) -> Sequence[str]:
        """The columns it standardizes."""
        return self._columns if self._standardizes else ()

    def inverse(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with the stage's columns transformed back by the current state, for
        predictions of a transformed column."""
        columns = []
        for column, above, below, shift, scale in self._rows_of_numbers():
            if column in frame.columns:
                values = frame.get_column(column).cast(pl.Float64)
                if self._standardizes:
                    values = values / scale + shift
                columns.append(inverse_power_transform(values, above, below))
        return replaced(frame, columns)

    def _effects(self) -> Floats:
        """Return the numbers as they are applied, shape (4, columns): a column without a scale
        becomes 0, but what is infinite or too large stays as large as it is, which no power may
        change before."""
        return np.where(self._numbers[3] != 0, self._numbers, [[1.0], [1.0], [0.0], [0.0]])

    def _rows_of_numbers(self) -> list[tuple[str, float, float, float, float]]:
        """Yield column, its two exponents, shift and scale."""
        return list(zip(self._columns, *self._numbers.tolist(), strict=True))

    def _fit(self) -> None:
        """Fit exponents, shift and scale again for columns that have learned enough since."""
        digest = self._statistic
        if not isinstance(digest, Quantiles):
            return
        count = digest.count
        fitted = np.where(count < self._fitted, 0, self._fitted)  # what was forgotten
        enough = np.maximum(self.settings.min_rows, REFIT_GROWTH * fitted)
        at = np.flatnonzero(count >= enough)
        few = np.flatnonzero((count > 0) & (count < enough) & (fitted == 0))
        parameters = self._numbers.copy()
        if self._standardizes and len(few):
            parameters[2:, few] = _standard(
                digest.mean[:, few], digest.weight[:, few], parameters[:2, few]
            )
            self._numbers = parameters
        if not len(at):
            return
        if self._fits:
            exponent = yeo_johnson(digest.mean[:, at], digest.weight[:, at])
            parameters[0, at], parameters[1, at] = exponent, 2 - exponent
        if self._standardizes:
            parameters[2:, at] = _standard(
                digest.mean[:, at], digest.weight[:, at], parameters[:2, at]
            )
        fitted = self._fitted.copy()
        fitted[at] = count[at]
        self._numbers, self._fitted = parameters, fitted

    def snapshot(self) -> Snapshot:
        """Return the digest, exponents with shift and scale, and the numbers seen at the fit;
        None if all are given."""
        learned = super().snapshot()
        return learned and {**learned, "numbers": self._numbers, "fitted": self._fitted}

    def merge(self, value: Snapshot) -> None:
        """Merge as every stage; exponents are fitted again."""
        if value is not None:
            value = {k: v for k, v in value.items() if k not in ("numbers", "fitted")}
        super().merge(value)
        self._fitted = np.zeros_like(self._fitted)
        self._fit()

    def restore(self, value: Snapshot) -> None:
        if value is None:
            super().restore(None)
            return
        learned = dict(value)
        self._numbers, self._fitted = learned.pop("numbers"), learned.pop("fitted")
        super().restore(learned)

    def transforms(self) -> Sequence[Transform] | None:
        """Return one `Power` per column, and an `Affine` if the result is standardized."""
        rows = list(zip(self._columns, *self._effects().tolist(), strict=True))
        transforms_out: list[Transform] = [
            Power(column=c, above=a, below=b) for c, a, b, _, _ in rows
        ]
        if self._standardizes:
            transforms_out += [
                Affine(column=c, shift=shift, scale=scale) for c, _, _, shift, scale in rows
            ]
        return transforms_out


def yeo_johnson(values: Floats, weights: Floats) -> Floats:
    """Return the maximum-likelihood exponent of each column, 1 if it does not vary.

    Args:
        values: shape (n, columns), finite.
        weights: how often each counts, same shape; 0 for none.
    """
    used = weights > 0
    size = np.log1p(np.abs(values))
    sign = np.where(values < 0, -1.0, 1.0)
    total = np.maximum(weights.sum(axis=0), 1.0)
    mean_log = (weights * sign * size).sum(axis=0) / total
    # Where all numbers have one sign, only their ratios count: from the smallest on, nothing is
    # lost beside the 1 in (1 + x)**l - 1.
    mixed = (used & (values < 0)).any(axis=0) & (used & (values > 0)).any(axis=0)
    start = np.where(mixed, 0.0, np.where(used, size, np.inf).min(axis=0, initial=np.inf))
    start = np.where(np.isfinite(start), start, 0.0)
    negative = (used & (values < 0)).any(axis=0)
    least = -DIGITS / np.maximum(start, 1e-9)
    low = np.where(negative, LOW, np.maximum(LOW, least))
    high = np.where(negative, np.minimum(HIGH, 2 - least), HIGH)

    def likelihood(exponent: Floats) -> Floats:
        p = np.where(sign > 0, exponent, 2 - exponent)
        y = p * (size - start)
        curved = np.divide(np.expm1(y), p, where=p != 0, out=size - start)
        one_sided = np.where(negative, 2 - exponent, exponent)
        _, variance = _moments(np.where(used, sign * curved, 0.0), weights)
        expand_columns = np.log(variance) + 2 * one_sided * start
        likelihoods = -expand_columns / 2 + (exponent - 1) * mean_log
        return np.where(np.isfinite(likelihoods), likelihoods, -np.inf)

    with np.errstate(all="ignore"):  # an exponent too large for the numbers is no maximum
        _, varies = _moments(np.where(used, values, 0.0), weights)
        exponent = _maximum(likelihood, low, high)
    exponents: Floats = np.where(varies > 0, exponent, 1.0)
    return exponents


def _maximum(f: Any, low: Floats, high: Floats) -> Floats:
    """Return the maximum of f between low and high, by golden sections (Kiefer, 1953), all
    columns at once."""
    golden = (np.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(SECTIONS):
        lower = at_left >= at_right  # the maximum lies below `right`
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        other = np.where(lower, high - golden * (high - low), low + golden * (high - low))
        value = f(other)
        left, right = np.where(lower, other, right), np.where(lower, left, other)
        at_left, at_right = np.where(lower, value, at_right), np.where(lower, at_left, value)
    return np.asarray((low + high) / 2)


def _moments(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return weighted mean and population variance of each column, the latter 0 where only
    rounding makes it differ from 0."""
    total = np.maximum(weights.sum(axis=0), 1.0)
    mean = (weights * values).sum(axis=0) / total
    variance = (weights * (values - mean) ** 2).sum(axis=0) / total
    noise = (values.shape[0] * np.finfo(np.float64).eps * mean) ** 2
    return mean, np.where(variance > noise, variance, 0.0)


def _standard(values: Floats, weights: Floats, exponents: Floats) -> Floats:
    """Return shift and scale of each transformed column, shape (2, columns), from the numbers whose
    squares float64 can hold."""
    columns = [
        power_transform(pl.Series(np.ascontiguousarray(column)), above, below).to_numpy()
        for column, above, below in zip(values.T, *exponents.tolist(), strict=True)
    ]
    powers = np.stack(columns, axis=1)
    held = np.abs(powers) < MAX_ABS
    mean, variance = _moments(np.where(held, powers, 0.0), np.where(held, weights, 0.0))
    return np.stack((mean, inverse(np.sqrt(variance))))


__all__ = ["Powers", "yeo_johnson"]
