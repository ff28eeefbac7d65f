"""The columns a model learns from, and its class numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class Features:
    """The columns a model reads.

    Attributes:
        numeric: names of the numeric columns, in the order of the tensor's columns.
        categories: name -> number of codes, code 0 (unknown) included; the columns hold codes
            already.
        target: the label's column, or None when serving.
        task: ``regression``, ``binary`` or ``multiclass``.
        classes: for classification, the label's values in class order (as text: ``false``,
            ``true``, ...).
        images: name -> channels, height, width.
        ragged, padded: name of a column of lists -> number of its ids, 0 included; 0 where that is
            not known, or where the lists hold numbers that are no ids.
        sparse: name of a column of lists of ids -> number of ids; how often each is there.
        max_length: values of a list that are kept, from its start; None keeps all.
        buckets: lengths that padded lists are filled up to, ascending: a batch to the smallest that
            holds its longest row. None given: powers of two up to `max_length`.
        scaled: numeric columns that a stage has put on a scale that moves with the stream.
        threshold: of two classes, class 1 is predicted where its probability is above this.
        probabilities: whether answers hold every class's probability.
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, int] = field(default_factory=dict)
    target: str | None = None
    task: str = "regression"
    classes: tuple[str, ...] = ()
    images: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    ragged: Mapping[str, int] = field(default_factory=dict)
    padded: Mapping[str, int] = field(default_factory=dict)
    sparse: Mapping[str, int] = field(default_factory=dict)
    max_length: int | None = None
    buckets: tuple[int, ...] = ()
    scaled: tuple[str, ...] = ()
    threshold: float = 0.5
    probabilities: bool = False

    @property
    def nested(self) -> tuple[str, ...]:
        """The columns that hold arrays and lists."""
        return (*self.images, *self.ragged, *self.padded, *self.sparse)

    @property
    def outputs(self) -> int:
        """The width of the model's score: 1, or the number of classes."""
        return len(self.classes) if self.task == "multiclass" else 1

    def prediction_columns(self, scores: NDArray[np.floating[Any]]) -> list[pl.Series]:
        """Return a model's scores as columns: ``prediction`` (Float64, or the class as text),
        and for classification ``probability`` (of class 1 for binary, of the predicted class for
        multiclass; Float64); with `probabilities` also ``probability_CLASS`` of each.

        Args:
            scores: as in `Step.scores`, shape (n,) or (n, k).
        """
        scores = np.asarray(scores, np.float64)
        if self.task == "regression":
            return [pl.Series("prediction", scores)]
        two = scores.ndim == 1
        codes = (scores > self.threshold).astype(np.int64) if two else scores.argmax(axis=1)
        labels = pl.Series("prediction", self.classes, pl.String).gather(codes)
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
            return ("prediction",)
        each = [f"probability_{name}" for name in self.classes] if self.probabilities else []
        return ("prediction", "probability", *each)


def class_indexes(column: pl.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each label, shape (n,); -1 for unknown labels.

    A label is the class of its own text, or else the one class of the same value: 1, 1.0, "1.0" and
    true are equal, and so are 0, "0.0" and false.
    """
    texts = column.cast(pl.String)
    numbers = texts.cast(pl.Enum(list(classes)), strict=False).to_physical().cast(pl.Int64)
    left = numbers.is_null() & texts.is_not_null()
    if left.any():
        equal = _equal_classes(texts.filter(left).unique().to_list(), classes)
        indexes = texts.replace_strict(equal, default=None, return_dtype=pl.Int64)
        numbers = numbers.fill_null(indexes)
    return numbers.fill_null(-1).to_numpy(writable=True)


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
