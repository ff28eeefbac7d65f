"""The columns a model learns from, and its class numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import (
    TYPE_CHECKING,
    Any,
)  # fmt: skip

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass
from engine.types.schema import BOOLEAN_VALUES


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedState:
    """A state that a model carries from each row to the next one of the same key.

    Attributes:
        by: the key columns, as they are before the stages that a model file contains.
        width: numbers of a state.
        keys: the most keys that are remembered, those that came last.
        idle: a key that comes again so much later starts anew: in rows, or in ticks of `time`;
            None: never.
        time: the column of the event time, as `by`; None: rows are counted.
    """

    by: tuple[str, ...]
    width: int
    keys: int
    idle: int | None = None
    time: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return self.by if self.time is None else (*self.by, self.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The columns a model reads.

    Attributes:
        numeric: names of the numeric columns, in the order of the tensor's columns.
        categories: name -> number of codes, code 0 (unknown) included; the columns hold codes
            already.
        target: the label's column; None when serving, and where there are several.
        targets: the columns of several labels of a regression, which are predicted together.
        task: ``regression``, ``binary`` or ``multiclass``.
        classes: for classification, the label's values in class order (as text: ``false``,
            ``true``, ...).
        max_classes: where classes appear while the model learns, the most that are kept, and
            `classes` are those known now; 0 where they are all there are.
        images: name -> channels, height, width.
        ragged, padded: name of a column of lists -> number of its ids, 0 included; 0 where that is
            not known, or where the lists hold numbers that are no ids.
        sparse: name of a column of lists of ids -> number of ids; how often each is there.
        arrays: name of a column of arrays of numbers -> length, width; a row of an array is null
            where there is none.
        float_images: those of `images` that hold float32 numbers, not bytes.
        inputs: name of an input of a network -> its columns, which are features of one kind.
        state: what the model carries from row to row; None if each row stands alone.
        max_length: values of a list that are kept, from its start; None keeps all.
        buckets: lengths that padded lists are filled up to, ascending: a batch to the smallest that
            holds its longest row. None given: powers of two up to `max_length`.
        scaled: numeric columns that a stage has put on a scale.
        moving: those of them whose scale moves with the stream.
        lowest_label: of a regression: numbers below it are no labels.
        deviance_power: of a regression whose predictions are means of counts or amounts, above 0:
            the power of the mean that the variance follows (Tweedie; 1 is Poisson).
        quantiles: of a regression that predicts several: the share of the targets that lies below
            each, rising, 0.5 among them. Empty where it predicts one value.
        quantile: of a regression whose one value is a quantile (0.5: a median): that share; None
            where it is a mean, or not known.
        vector_width: of a classifier that also answers a vector of length 1 for each row: its
            numbers; 0 of others.
        threshold: of two classes, class 1 is predicted where its probability is above this.
        probabilities: whether answers hold every class's probability.
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, int] = field(default_factory=dict)
    target: str | None = None
    targets: tuple[str, ...] = ()
    task: str = "regression"
    classes: tuple[str, ...] = ()
    max_classes: int = 0
    images: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    ragged: Mapping[str, int] = field(default_factory=dict)
    padded: Mapping[str, int] = field(default_factory=dict)
    sparse: Mapping[str, int] = field(default_factory=dict)
    arrays: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    float_images: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    state: KeyedState | None = None
    max_length: int | None = None
    buckets: tuple[int, ...] = ()
    scaled: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()
    lowest_label: float = -math.inf
    deviance_power: float | None = None
    quantiles: tuple[float, ...] = ()
    quantile: float | None = None
    vector_width: int = 0
    threshold: float = 0.5
    probabilities: bool = False

    @property
    def nested(self) -> tuple[str, ...]:
        """The columns that hold arrays and lists."""
        return (*self.images, *self.ragged, *self.padded, *self.sparse, *self.arrays)

    @property
    def most_values(self) -> int:
        """The length of the longest padded list."""
        most = self.buckets[-1] if self.buckets else self.max_length
        assert most is not None, "padded lists have a limit"
        return min(most, self.max_length or most)

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of the label; none when serving."""
        return self.targets if self.target is None else (self.target,)

    @property
    def outputs(self) -> int:
        """The width of the model's score: 1, or the number of classes, targets or quantiles."""
        if self.task == "multiclass":
            return len(self.classes)
        return max(1, len(self.targets), len(self.quantiles))

    def score_shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of the scores of so many rows: (n,), or (n, outputs)."""
        wide = self.task == "multiclass" or self.targets or self.quantiles
        return (rows, self.outputs) if wide else (rows,)

    @property
    def most_outputs(self) -> int:
        """The width of what a network returns: of its vector, or of its score, with an output for
        every class that may come."""
        return self.vector_width or self.max_classes or self.outputs

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles that it predicts, whether one or several; empty for means."""
        return self.quantiles or (() if self.quantile is None else (self.quantile,))

    @property
    def median(self) -> int:
        """The place of the median among the quantiles."""
        return self.quantiles.index(0.5)

    def points(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what a regression predicts as one value: of quantiles the median, (n,); other
        scores are returned as they are."""
        return scores[:, self.median] if self.quantiles else scores

    def prediction_columns(self, scores: NDArray[np.floating[Any]]) -> list[pl.Series]:
        """Return a model's scores as columns: ``prediction`` (Float64, or the class as text), of
        several targets ``prediction_TARGET`` of each, of several quantiles the median and
        ``prediction_q10`` of each; and for classification ``probability`` (of class 1 for binary,
        of the predicted class for multiclass; Float64); with `probabilities` also
        ``probability_CLASS`` of each. A row whose classes all have a probability of 0 has no
        prediction.

        Args:
            scores: as in `Step.scores`, shape (n,) or (n, k).
        """
        scores = np.asarray(scores, np.float64)
        if self.task == "regression":
            columns = list(scores.reshape(len(scores), self.outputs).T)
            columns = [columns[self.median], *columns] if self.quantiles else columns
            pairs = zip(self.prediction_names, columns, strict=True)
            return [pl.Series(name, np.ascontiguousarray(column)) for name, column in pairs]
        two = scores.ndim == 1
        codes = predicted_classes(scores, self.threshold)
        none = codes < 0
        at = pl.Series(np.where(none, 0, codes).astype(np.uint32))
        at = at.set(pl.Series(none), None) if none.any() else at
        labels = pl.Series("prediction", self.classes, pl.String)[at]
        probability = scores if two else scores.max(axis=1, initial=0.0)
        each = [1 - scores, scores] if two else list(scores.T)
        named = zip(self.prediction_names[2:], each, strict=False)
        return [
            labels, pl.Series("probability", probability), *(pl.Series(n, p) for n, p in named),
        ]  # fmt: skip

    @property
    def prediction_names(self) -> tuple[str, ...]:
        """Return the names of those columns."""
        if self.task == "regression":
            if self.targets:
                return tuple(f"prediction_{name}" for name in self.targets)
            return ("prediction", *(f"prediction_{quantile_name(q)}" for q in self.quantiles))
        each = [f"probability_{name}" for name in self.classes] if self.probabilities else []
        return ("prediction", "probability", *each)


def quantile_name(quantile: float) -> str:
    """Return the name of a quantile: ``q10`` of 0.1, ``q97_5`` of 0.975; one that Avro and SQL
    take."""
    return f"q{Decimal(str(quantile)).scaleb(2).normalize():f}".replace(".", "_")


def pinball_losses(
    target: NDArray[np.float64], scores: NDArray[np.float64], quantiles: Sequence[float]
) -> NDArray[np.float64]:
    """Return the pinball loss of each row and quantile, shape (n, quantiles).

    Source: Koenker & Bassett, "Regression quantiles", 1978.

    Args:
        target: shape (n,).
        scores: shape (n, quantiles).
    """
    gap, share = target[:, None] - scores, np.asarray(quantiles)
    losses: NDArray[np.float64] = np.maximum(share * gap, (share - 1) * gap)
    return losses


def predicted_classes(
    scores: NDArray[np.floating[Any]], threshold: float = 0.5
) -> NDArray[np.int64]:
    """Return predicted class numbers, shape (n,).

    Args:
        scores: of two classes, the probability of class 1, (n,), which is predicted above the
            threshold; of more (n, k): the likeliest is, and -1 where all have a probability of 0.
    """
    if scores.ndim == 1:
        return (scores > threshold).astype(np.int64)
    if not scores.shape[1]:
        return np.full(len(scores), -1)
    likeliest: NDArray[np.int64] = scores.argmax(axis=1)
    likeliest[~scores.any(axis=1)] = -1
    return likeliest


def class_indexes(column: pl.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each label, shape (n,); -1 for unknown labels.

    A label is the class of its own text, or else the one class of the same value: 1, 1.0, "1.0" and
    true are equal, and so are 0, "0.0" and false.
    """
    if not classes:
        return np.full(len(column), -1)
    texts = column.cast(pl.String)
    numbers = texts.cast(pl.Enum(list(classes)), strict=False).to_physical().cast(pl.Int64)
    if numbers.null_count() > texts.null_count():
        left = texts.filter(numbers.is_null()).drop_nulls().unique().to_list()
        equal = _equal_classes(left, classes)
        indexes = texts.replace_strict(equal, default=None, return_dtype=pl.Int64)
        numbers = numbers.fill_null(indexes)
    if numbers.null_count():
        numbers = numbers.fill_null(-1)
    return numbers.to_numpy(writable=True)


def _equal_classes(labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Return the labels that equal exactly one class."""
    values = [label_value(name) for name in classes]
    often = Counter(values)
    number = {v: i for i, v in enumerate(values) if v is not None and often[v] == 1}
    indexes = {}
    for label in labels:
        value = label_value(label)
        if value is not None and value in number:
            indexes[label] = number[value]
    return indexes


def label_value(text: str) -> int | float | None:
    """Return the number that a text or a boolean stands for; None for other text."""
    word = text.strip().lower()
    if word in BOOLEAN_VALUES:
        return BOOLEAN_VALUES[word]
    try:
        return int(word)
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
