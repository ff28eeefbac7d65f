"""Columns to tensors: the last step before the model, and the last chance for a bad row to leave."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from engine.types import Batch, Features, Schema, Tensors, UserError, require


class Collate:
    """Makes a batch's `Tensors` of the model's features.

    A row is rejected (stage ``collate``) with reason ``missing`` when a feature is null or NaN,
    ``not_finite`` when it is infinite or too large for float32, ``missing_label`` or
    ``unknown_label`` by its label. So a learner only ever sees finite numbers and known classes.

    Args:
        features: what the model reads; without `target` the batch gets no labels.
    """

    name = "collate"

    def __init__(self, features: Features) -> None:
        self.features = features
        self._numeric = [pl.col(c).cast(pl.Float32, strict=False) for c in features.numeric]
        self._categories = [pl.col(c).cast(pl.Int64, strict=False) for c in features.categories]

    def bind(self, schema: Schema) -> None:
        """Raises: UserError when a feature is not a column, or of a type that is no number."""
        features = self.features
        names = [*features.numeric, *features.categories]
        require(schema, names, where="[model]")
        for column in names:
            kind = schema[column]
            if not (kind.is_numeric() or kind == pl.Boolean):
                raise UserError(
                    f"[model] expects numbers in column '{column}', got {kind}: encode it with a "
                    "'categories' stage, or leave it out."
                )
        if features.target is not None:
            require(schema, [features.target], where="[model] target")

    def apply(self, batch: Batch) -> Batch:
        """The batch with tensors, without the rows that cannot have any."""
        batch = self._labelled(batch)
        numeric = self._matrix(batch.frame)
        finite = np.isfinite(numeric)
        if not finite.all():
            batch = self._finite(batch, numeric)
            numeric = numeric[finite.all(axis=1)]
        return dataclasses.replace(batch, tensors=self._tensors(batch.frame, numeric))

    def _matrix(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        if not self._numeric:
            return np.empty((frame.height, 0), np.float32)
        # order="c" writes rows next to each other, as the network reads them; null becomes NaN.
        return frame.select(self._numeric).to_numpy(order="c", writable=True)

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
            reason="not_finite",
            detail=self._named(
                "Expected a float32 in feature '{}', got a larger number.", infinite
            ),
        )

    def _named(self, sentence: str, at: NDArray[np.bool_]) -> pl.Series:
        """The sentence for each row with the name of the first feature where `at` is true."""
        sentences = pl.Series([sentence.replace("{}", c) for c in self.features.numeric])
        return sentences.gather(at.argmax(axis=1))

    def _labelled(self, batch: Batch) -> Batch:
        target = self.features.target
        if target is None or not len(batch):
            return batch
        column = batch.frame.get_column(target)
        present = column.is_not_null()
        if column.dtype.is_float():
            present = present & column.is_not_nan().fill_null(False)
        batch = batch.reject(present, stage=self.name, reason="missing_label")
        return (
            self._finite_label(batch)
            if self.features.task == "regression"
            else self._classed(batch)
        )

    def _finite_label(self, batch: Batch) -> Batch:
        target = pl.col(str(self.features.target))
        finite = target.cast(pl.Float32, strict=False).is_finite()
        return batch.reject(
            finite, stage=self.name, reason="not_finite", detail="Expected a finite label."
        )

    def _classed(self, batch: Batch) -> Batch:
        target = pl.col(str(self.features.target)).cast(pl.String)
        known = target.is_in(list(self.features.classes))
        detail = pl.format(
            "Expected a label of "
            + ", ".join(self.features.classes).replace("{", "{{")
            + "; got '{}'.",
            target,
        )
        return batch.reject(known, stage=self.name, reason="unknown_label", detail=detail)

    def _tensors(self, frame: pl.DataFrame, numeric: NDArray[np.float32]) -> Tensors:
        categories = np.empty((frame.height, 0), np.int64)
        if self._categories:
            codes = frame.select(self._categories)
            categories = codes.fill_null(0).to_numpy(order="c", writable=True)
        return Tensors(
            numeric=torch.from_numpy(numeric),
            categories=torch.from_numpy(categories),
            target=None if self.features.target is None else torch.from_numpy(self.target(frame)),
        )

    def target(self, frame: pl.DataFrame) -> NDArray[np.float32] | NDArray[np.int64]:
        """The labels of rows that have one: float32 numbers, or class numbers (int64), shape (n,)."""
        column = frame.get_column(str(self.features.target))
        if self.features.task == "regression":
            return column.cast(pl.Float32).to_numpy(writable=True)
        kind = pl.Enum(list(self.features.classes))
        codes = column.cast(pl.String).cast(kind).to_physical().cast(pl.Int64)
        return codes.to_numpy(writable=True)


__all__ = ["Collate"]
