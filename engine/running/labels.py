"""Infers the classes of a label from the first rows, if the pipeline file names none."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from engine.types import (
    Batch,
    EndOfStream,
    Mark,
    Schema,
    Source,
    Stage,
    UserError,
    label_value,
)
from engine.types.plural import counted
from engine.user_code import calls

ROWS, BYTES, SECONDS = 100_000, 64 << 20, 10.0
"""The limits of the sample."""
READ_ROWS, READ_BYTES = 10_000, 8 << 20
MAX_CLASSES = 100
"""The most distinct labels that can be classes."""
FEW = 20
"""The most distinct integers that may be classes."""
MAX_LABEL_CHARS = 60
"""The most characters of a label that can name a class."""
MAX_LABELS_SHOWN = 10
BOOLS = ("false", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels found in the first rows of a source.

    Attributes:
        values: the different labels as text, in class order.
        rows: how many rows were seen.
        whole: whether those are all that the source has.
    """

    values: tuple[str, ...]
    rows: int
    whole: bool

    @property
    def where(self) -> str:
        """The sampled rows, in words."""
        return f"{'all' if self.whole else 'the first'} {counted(self.rows, 'row')}"

    @property
    def shown(self) -> str:
        """The values, in words."""
        more = f", ... ({len(self.values):,})" if len(self.values) > MAX_LABELS_SHOWN else ""
        return (
            ", ".join(f"'{value[:MAX_LABEL_CHARS]}'" for value in self.values[:MAX_LABELS_SHOWN])
            + more
        )

    def words(self, target: str) -> str:
        """The finding, as part of a sentence."""
        if not self.rows:
            return f"no row of '{target}' was looked at"
        return f"'{target}' has {self.shown or 'no value'} in {self.where}"


def look(
    source: Source, schema: Schema, stages: Sequence[Stage], target: str, most: int = ROWS
) -> Labels:
    """Return the labels of the first rows after the stages, which learn from these rows: pass
    bound stages that are used only here.

    Reads until `most` rows, BYTES or SECONDS are reached, or too many labels for classes were seen.
    """
    source.seek(Mark())
    values: set[str] = set()
    rows = size = 0
    deadline = time.monotonic() + SECONDS
    while (
        rows < most and size < BYTES and len(values) <= MAX_CLASSES and time.monotonic() < deadline
    ):
        try:
            records = source.read(READ_ROWS, READ_BYTES, 1.0)
        except EndOfStream:
            return Labels(values=in_order(values), rows=rows, whole=True)
        if records is None:
            if rows and source.unbounded():
                break
            continue
        rows, size = rows + len(records), size + records.nbytes
        frame, _ = calls.decode(source.format, records, schema)
        batch = Batch(frame=frame, mark=Mark(), arrived=records.arrived, raw_rows=len(records))
        for stage in stages:
            batch = calls.apply(stage, batch)
        values.update(labels_of(batch.frame.get_column(target)))
    return Labels(values=in_order(values), rows=rows, whole=False)


def labels_of(column: pl.Series) -> list[str]:
    """Return the distinct labels as text, without null and NaN."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
    texts: list[str] = column.drop_nulls().unique().cast(pl.String).to_list()
    return texts


def in_order(values: set[str]) -> tuple[str, ...]:
    """Sort numbers by value, equal ones once; other labels as text."""
    numbers = [(label_value(value), value) for value in values]
    known = [(number, value) for number, value in numbers if number is not None]
    if len(known) < len(numbers):
        return tuple(sorted(values))
    by_value = dict(sorted(known, reverse=True))
    return tuple(by_value[number] for number in sorted(by_value))


def task_of(dtype: pl.DataType | type[pl.DataType], classes: int) -> str:
    """Return the task for a target's type: regression for numbers, else classes."""
    if dtype.is_numeric():
        return "regression"
    return "multiclass" if classes > 2 else "binary"


def few_numbers(values: Collection[str], target: str, where: str) -> str | None:
    """Return a remark on a regression target whose numbers may be classes, or are all the same;
    None if they are many, or fractions.

    Args:
        values: its different values, as text.
        where: in which rows, in words.
    """
    numbers = [label_value(value) for value in values]
    if len(numbers) == 1:
        return (
            f"[model] task is regression, as '{target}' holds numbers, and it is "
            f"{next(iter(values))} in {where}: nothing can be learned of one value."
        )
    if not 1 < len(numbers) <= FEW or any(n is None or n % 1 for n in numbers):
        return None
    task = "binary" if len(numbers) == 2 else "multiclass"
    return (
        f"[model] task is regression, as '{target}' holds numbers; it has {len(numbers)} different "
        f"whole numbers in {where}: where they are classes, set [model] task = '{task}'."
    )


def require_classes(labels: Labels, task: str, target: str, where: str) -> tuple[str, ...]:
    """Return the labels as classes.

    Raises: UserError if it is too little or too much, or no names of classes.
    """
    values, seen = labels.values, labels.words(target)
    if len(values) > MAX_CLASSES or any(len(value) > MAX_LABEL_CHARS for value in values):
        raise UserError(
            f"{where} leaves out [model] classes, which are found where a target has at most "
            f"{MAX_CLASSES} different short values, and {seen}: name the classes, or choose "
            f"another "
            "target."
        )
    if any(number is not None and number % 1 for number in map(label_value, values)):
        raise UserError(
            f"{where} leaves out [model] classes, and {seen}, numbers that are no classes: name "
            "them, or set task to 'regression'."
        )
    if labels.rows and not values:
        raise UserError(
            f"{where} leaves out [model] classes, and no row has a label: '{target}' is empty in "
            f"{labels.where}. Choose another target, or rows that have one."
        )
    if len(values) < 2:
        raise UserError(
            f"{where} leaves out [model] classes, and {seen}: name them all, as in "
            f"classes = {json.dumps([*values, 'other'])}."
        )
    if task == "binary" and len(values) > 2:
        raise UserError(
            f"{where} is 'binary', which has two classes, and {seen}: set task to 'multiclass', "
            "or name the two that count; rows of others are rejected."
        )
    return values


__all__ = ["Labels", "few_numbers", "in_order", "labels_of", "look", "require_classes", "task_of"]
