"""Turns columns into tensors; the last point at which a row can be rejected."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.batch_group import BatchGroup
from engine.columnar.buffer_pool import BufferPool
from engine.columnar.event_time import times_in_ticks
from engine.columnar.hashing import hashes
from engine.columnar.kernels import rows_into
from engine.loading import nested_tensors
from engine.types import (
    Batch,
    Features,
    Mark,
    Schema,
    Tensors,
    UserError,
    class_indexes,
    require,
    tensor,
    type_name,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger("headrace.collate")
T = TypeVar("T")
MAX_CLASS_CHARS = 1_000
"""The most characters of a label that names a class."""


class Collate:
    """Makes a batch's `Tensors` from the model's features.

    A row is rejected (stage ``collate``) with reason ``missing`` when a feature is null or NaN,
    ``non_finite`` when it is infinite or too large for float32, ``out_of_range`` when an id is none
    of those that there are, ``missing_label``, ``unknown_label`` or ``low_label`` (below what can
    be learned) by its label. So a learner only
    ever sees finite numbers, known ids and known classes. Values beyond `Features.max_length` are
    cut off, counted as ``truncated``, and told once.

    Where classes appear while the model learns, there is no target yet, and a label that is too
    long for a name is a ``long_label``.

    Args:
        features: what the model reads; without `target` the batch gets no labels.
        unlabelled: whether rows without a label stay, to be scored; see `Tensors.target`.
    """

    name = "collate"

    def __init__(self, features: Features, *, unlabelled: bool = False) -> None:
        self.features = features
        self._unlabelled = unlabelled
        self._buffers = BufferPool()
        self._cut_told = False
        _compile()

    def bind(self, schema: Schema) -> None:
        """Raises: UserError when a feature is not a column, or of a type that is no number."""
        features = self.features
        names = [*features.numeric, *features.categories]
        require(schema, names, where="[model]")
        for column in names:
            dtype = schema[column]
            if not (dtype.is_numeric() or dtype == pl.Boolean):
                raise UserError(
                    f"[model] expects numbers in column '{column}', got {type_name(dtype)}: encode "
                    "it with a 'categories' stage, declare it, as in [source.schema] "
                    f'{column} = "float64", or leave it out.'
                )
        require(schema, features.labels, where="[model] target")
        require(schema, features.nested, where="[model]")
        nested_tensors.check(features, schema)

    def apply(self, batch: Batch) -> Batch:
        """Return the batch with tensors, without the rows that cannot have any."""
        batch = self._drop_bad_lists(batch) if self.features.nested else batch
        batch, labels = self._with_labels(batch)
        numeric = _matrix(batch.frame, self.features.numeric, self._buffers)
        finite = np.isfinite(numeric)
        if not finite.all():
            batch = self._finite(batch, numeric)
            good = finite.all(axis=1)
            numeric, labels = numeric[good], None if labels is None else labels[good]
        tensors = Tensors(
            numeric=tensor(numeric),
            categories=tensor(_codes(batch.frame, list(self.features.categories))),
            target=None if labels is None else tensor(labels),
            keys=self._keys(batch),
            times=self._times(batch),
            scales=batch.scales,
        )
        if self.features.nested:
            return self._nested(batch, tensors)
        return dataclasses.replace(batch, tensors=tensors)

    def __call__(self, batch: Batch) -> Batch:
        """Return `apply(batch)`."""
        return self.apply(batch)

    def apply_group(self, batch_group: BatchGroup) -> BatchGroup:
        """Apply to each batch; in one call if all rows can have tensors."""
        features = self.features
        alone = features.nested or features.state is not None
        if batch_group.frame is None or len(batch_group) == 1 or alone:
            return batch_group.map(self.apply)
        whole = self.apply(Batch(frame=batch_group.frame, mark=Mark(), arrived=0.0))
        if whole.rejects or whole.tensors is None:
            return batch_group.map(self.apply)
        tensors = whole.tensors
        parts = [tensors.map(itemgetter(slice(*ends))) for ends in pairwise(batch_group.ends)]
        batches = zip(batch_group.batches, parts, strict=True)
        return dataclasses.replace(
            batch_group,
            batches=tuple(
                dataclasses.replace(batch, tensors=dataclasses.replace(part, scales=batch.scales))
                for batch, part in batches
            ),
        )

    def _keys(self, batch: Batch) -> torch.Tensor | None:
        """Return the hash of each row's key, as a model file sees it: before the stages in it."""
        if self.features.state is None:
            return None
        frame = batch.frame if batch.raw is None else batch.raw
        return tensor(hashes(frame, self.features.state.by).view(np.int64))

    def _times(self, batch: Batch) -> torch.Tensor | None:
        """Return the time of each row, which a state expires by."""
        state = self.features.state
        if state is None or state.time is None:
            return None
        frame = batch.frame if batch.raw is None else batch.raw
        return tensor(times_in_ticks(frame.get_column(state.time)))

    def _nested(self, batch: Batch, tensors: Tensors) -> Batch:
        """Add image and list tensors to the numeric ones."""
        features, columns = self.features, batch.frame
        most, cut = features.max_length, 0

        def counted(result: tuple[T, int]) -> T:
            nonlocal cut
            cut += result[1]
            return result[0]

        images = {c: nested_tensors.image(columns[c]) for c in features.images}
        ragged = {c: counted(nested_tensors.ragged(columns[c], most)) for c in features.ragged}
        padded = {
            c: counted(nested_tensors.padded(columns[c], most, features.buckets))
            for c in features.padded
        }
        sparse = {
            c: counted(nested_tensors.sparse(columns[c], width, most))
            for c, width in features.sparse.items()
        }
        arrays = {
            c: counted(nested_tensors.array(columns[c], length))
            for c, (length, _) in features.arrays.items()
        }
        tensors = dataclasses.replace(
            tensors, images=images, ragged=ragged, padded=padded, sparse=sparse, arrays=arrays
        )
        if cut:
            self._tell_cut()
            batch = batch.counted(self.name, truncated=cut)
        return dataclasses.replace(batch, tensors=tensors)

    def _tell_cut(self) -> None:
        if self._cut_told:
            return
        self._cut_told = True
        log.warning(
            "the model reads the first %s values of each list and leaves out the rest: set [model] "
            "max_length to read more; how many are left out is counted as 'truncated'",
            f"{self.features.most_values:,}",
        )

    def _drop_bad_lists(self, batch: Batch) -> Batch:
        """Drop the rows whose arrays or lists contain invalid values; a row has the first such
        reason."""
        left = np.ones(len(batch), np.bool_)
        for reason, bad, detail in list(nested_tensors.bad_rows(batch.frame, self.features)):
            batch = batch.reject(
                pl.Series(~bad[left]), stage=self.name, reason=reason, detail=detail
            )
            left &= ~bad
        return batch

    def _finite(self, batch: Batch, numeric: NDArray[np.float32]) -> Batch:
        missing, infinite = np.isnan(numeric), np.isinf(numeric)
        absent = missing.any(axis=1)
        batch = batch.reject(
            pl.Series(~absent),
            stage=self.name,
            reason="missing",
            detail=self._named("Expected a number in feature '{}', got null or NaN.", missing),
        )
        infinite = infinite[~absent]
        return batch.reject(
            pl.Series(~infinite.any(axis=1)),
            stage=self.name,
            reason="non_finite",
            detail=self._named(
                "Expected a finite float32 in feature '{}', got an infinite or larger number.",
                infinite,
            ),
        )

    def _named(self, sentence: str, at: NDArray[np.bool_]) -> pl.Series:
        """Return the sentence for each row with the name of the first feature for which `at` is
        true."""
        sentences = pl.Series([sentence.replace("{}", c) for c in self.features.numeric])
        return sentences.gather(at.argmax(axis=1))

    def _with_labels(self, batch: Batch) -> tuple[Batch, NDArray[Any] | None]:
        """Return the rows with valid labels, and the labels: float32 numbers, or class numbers
        (int64)."""
        if not self.features.labels:
            return batch, None
        if self.features.max_classes:  # whoever learns numbers them
            return self._reject_nameless(batch), None
        labels, good = self._labels(batch.frame)
        if not good.all():
            batch = self._rejected(batch)
            labels, _ = self._labels(batch.frame)
        return batch, labels

    def _labels(self, frame: pl.DataFrame) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Parse the labels; return them with a mask of valid rows."""
        features = self.features
        if features.task == "regression":
            numbers = _matrix(frame, features.labels, self._buffers)
            good = np.isfinite(numbers)
            if features.lowest_label > -math.inf:
                good &= numbers >= features.lowest_label
            missing = np.isnan(numbers)
            usable: Any = (good | missing).all(axis=1)
            if not self._unlabelled:
                usable &= ~missing.all(axis=1)
            return numbers if features.targets else numbers.ravel(), usable
        target = str(features.target)
        classes = class_indexes(frame.get_column(target), features.classes)
        known = classes >= 0
        if self._unlabelled and not known.all():
            known |= ~frame.select(_is_there(frame, target)).to_series().to_numpy()
        return classes, known

    def _reject_nameless(self, batch: Batch) -> Batch:
        """Reject labels that cannot name a class."""
        batch = self._reject_missing_labels(batch)
        text = pl.col(str(self.features.target)).cast(pl.String)
        return batch.reject(
            text.is_null() | (text.str.len_chars() <= MAX_CLASS_CHARS),
            stage=self.name,
            reason="long_label",
            detail=f"Expected a label of at most {MAX_CLASS_CHARS} characters, as a class has.",
        )

    def _rejected(self, batch: Batch) -> Batch:
        batch = self._reject_missing_labels(batch)
        regression = self.features.task == "regression"
        return self._finite_label(batch) if regression else self._reject_unknown_labels(batch)

    def _reject_missing_labels(self, batch: Batch) -> Batch:
        """Reject rows without a label, unless they stay; of several targets, one is enough."""
        if self._unlabelled:
            return batch
        names = self.features.labels
        present = pl.any_horizontal(*(_is_there(batch.frame, name) for name in names))
        where = " or ".join(f"'{name}'" for name in names)
        detail = f"Expected a label in {where}, got null or NaN."
        return batch.reject(present, stage=self.name, reason="missing_label", detail=detail)

    def _finite_label(self, batch: Batch) -> Batch:
        for name in self.features.labels:
            number = pl.col(name).cast(pl.Float32, strict=False)
            column = name.replace("{", "{{").replace("}", "}}")
            absent = ~_is_there(batch.frame, name)
            batch = batch.reject(
                absent | number.is_finite().fill_null(False),
                stage=self.name,
                reason="non_finite",
                detail=pl.format(
                    f"Expected a finite float32 as label in '{column}', got {{}}.", pl.col(name)
                ),
            )
            lowest = self.features.lowest_label
            if lowest > -math.inf:
                sentence = f"Expected a label of {lowest:g} or more in '{column}', got {{}}."
                batch = batch.reject(
                    ~_is_there(batch.frame, name) | (number >= lowest),
                    stage=self.name,
                    reason="low_label",
                    detail=pl.format(sentence, pl.col(name)),
                )
        return batch

    def _reject_unknown_labels(self, batch: Batch) -> Batch:
        target = pl.col(str(self.features.target)).cast(pl.String)
        column = batch.frame.get_column(str(self.features.target))
        known = pl.Series(class_indexes(column, self.features.classes) >= 0)
        absent = ~_is_there(batch.frame, str(self.features.target))
        detail = pl.format(
            "Expected a label of "
            + ", ".join(self.features.classes).replace("{", "{{")
            + " ([model] classes); got '{}'.",
            target,
        )
        return batch.reject(
            absent | pl.lit(known), stage=self.name, reason="unknown_label", detail=detail
        )


def _is_there(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Return whether a value is neither null nor NaN."""
    value = pl.col(column)
    there = value.is_not_null()
    return there & value.is_not_nan() if frame.schema[column].is_float() else there


def _matrix(frame: pl.DataFrame, names: Sequence[str], memory: BufferPool) -> NDArray[np.float32]:
    """Return the columns next to each other, shape (n, d), row-major as a network reads them;
    null is NaN."""
    matrix = memory.empty((frame.height, len(names)), np.float32)
    if not matrix.size:
        return matrix
    columns = frame[list(names)]
    try:  # as stages done together leave them
        block = columns.to_numpy(order="fortran", allow_copy=False)
    except RuntimeError:
        block = None
    if block is not None and block.dtype == np.float64:
        rows_into(block.T, matrix)
        return matrix
    with np.errstate(over="ignore"):  # becomes infinite, and is rejected as that
        for i, column in enumerate(columns):
            matrix[:, i] = _numbers(column)
    return matrix


@functools.cache
def _compile() -> None:
    """Compile the loop now, so that the first batch does not wait for it."""
    block = np.empty((0, 0))
    block.flags.writeable = False  # as polars hands it out
    rows_into(block, np.empty((0, 0), np.float32))


def _numbers(column: pl.Series) -> NDArray[Any]:
    """Return the column as it is in memory, shape (n,), if it is numeric without nulls."""
    if column.null_count() or not column.dtype.is_numeric() or column.dtype.is_decimal():
        column = column.cast(pl.Float32, strict=False)
    return column.to_numpy()


def _codes(frame: pl.DataFrame, names: list[str]) -> NDArray[np.int64]:
    """Return the codes of the categories, shape (n, c); null is 0, the unknown one."""
    codes = np.empty((frame.height, len(names)), np.int64)
    for i, name in enumerate(names):
        codes[:, i] = frame.get_column(name).cast(pl.Int64, strict=False).fill_null(0).to_numpy()
    return codes


__all__ = ["Collate"]
