"""What is wrong with the records that a user's source reads, and the rejects of a user's class.

Checked once per read or batch, whole columns at a time: a wrong position would be saved on a mark,
and rows would be lost or doubled where the run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import polars as pl

from engine.types.plural import counted
from engine.types.records import Records, Rejects, Values
from engine.types.schema import PARTITION, POSITION

MAX_POSITION = 2**63 - 1
ONE_EACH = "one for each of its positions"
NEXT = "next is where the next read goes on, after the last position"
REJECTS = "a list of engine.types.Rejects"
REJECTED_COLUMNS = (PARTITION, POSITION, "detail", "value")


def shown(value: object) -> str:
    """Return how sentences name a value of an unexpected type."""
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def records_mistake(records: Any, max_rows: int, marked: Mapping[str, int]) -> str | None:
    """Return what is wrong with what a source read; None if nothing.

    Args:
        max_rows: the most rows it was asked for.
        marked: partition -> the position that its last read, or the mark it was to go to, named as
            the next; partitions that are not there may begin anywhere.
    """
    if not isinstance(records, Records):
        return f"read {shown(records)}: expected engine.types.Records, or None"
    what, expected = (
        _partition_mistake(records)
        or _positions_mistake(records.positions)
        or _rows_mistake(records, max_rows)
        or _next_mistake(records)
        or _column_mistake(records)
        or _again_mistake(records, marked)
        or (None, "")
    )
    return what and f"read Records {what}: expected {expected}"


def rejects_mistake(rejects: Any) -> str | None:
    """Return what is wrong with the rejects of a class; None if nothing."""
    if not isinstance(rejects, list | tuple):
        return f"rejects {shown(rejects)}: expected {REJECTS}, empty for none"
    for reject in rejects:
        if not isinstance(reject, Rejects):
            return f"rejects {shown(reject)}: expected {REJECTS}, empty for none"
        for name in ("stage", "reason"):
            if not _is_text(value := getattr(reject, name)):
                return f"rejects rows whose {name} is {_value(value)}: expected a word, as text"
        rows: object = reject.rows
        if not isinstance(rows, pl.DataFrame):
            return f"rejects rows that are {shown(rows)}: expected a polars.DataFrame"
        if lacking := [c for c in REJECTED_COLUMNS if c not in rows.columns]:
            return (
                f"rejects rows without the column '{lacking[0]}': expected the columns "
                f"{', '.join(REJECTED_COLUMNS)}"
            )
    return None


def is_number(value: object) -> bool:
    """Return whether it is a plain number; nan and infinity are, true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


# ----------------------------------------------------------------------------------------- records

Mistake = tuple[str, str] | None
"""What is wrong, and what is expected."""


def _partition_mistake(records: Records) -> Mistake:
    if _is_text(records.partition):
        return None
    return f"whose partition is {_value(records.partition)}", "a name, as text"


def _positions_mistake(positions: Any) -> Mistake:
    expected = "a numpy array of int64, increasing from 0 or more"
    if not isinstance(positions, np.ndarray):
        return f"whose positions are {shown(positions)}", expected
    if positions.dtype != np.int64 or positions.ndim != 1:
        return f"whose positions are {positions.dtype} of the shape {positions.shape}", expected
    if positions.size and positions[0] < 0:
        return f"whose positions begin at {positions[0]}", expected
    falls = np.flatnonzero(positions[1:] <= positions[:-1])
    if falls.size:
        earlier, later = positions[falls[0] : falls[0] + 2]
        return f"whose position {earlier} is followed by {later}", expected
    return None


def _rows_mistake(records: Records, max_rows: int) -> Mistake:
    if len(records) > max_rows:
        return f"of {counted(len(records), 'row')}", f"{max_rows:,} or fewer, its max_rows"
    values: object = records.values
    if not isinstance(values, pl.DataFrame):
        return _values_mistake("values", values, len(records), "or a polars.DataFrame, ")
    return _count_mistake("values", values.height, len(records))


def _next_mistake(records: Records) -> Mistake:
    rows = len(records)
    last = records.mark_position(rows - 1) if rows else -1  # without a row, the mark alone goes on
    expected = f"a whole number above {last:,}, below 2**63: {NEXT}"
    if not isinstance(records.next, int) or isinstance(records.next, bool):
        return f"whose next is {_value(records.next)}", expected
    if last < records.next <= MAX_POSITION:
        return None
    return f"whose last position is {last:,} and whose next is {records.next:,}", expected


def _column_mistake(records: Records) -> Mistake:
    if not (is_number(records.arrived) and np.isfinite(records.arrived)):
        return f"whose arrived is {_value(records.arrived)}", "time.monotonic() of the oldest row"
    stamps: object = records.timestamps
    if stamps is not None:
        if not isinstance(stamps, np.ndarray) or stamps.dtype != np.int64 or stamps.ndim != 1:
            return f"whose timestamps are {shown(stamps)}", "a numpy array of int64, or None"
        if wrong := _count_mistake("timestamps", len(stamps), len(records)):
            return wrong
    for name in ("keys", "headers"):
        values = getattr(records, name)
        if values is not None and (wrong := _values_mistake(name, values, len(records), "or None")):
            return wrong
    return None


def _again_mistake(records: Records, marked: Mapping[str, int]) -> Mistake:
    first, due = records.mark_position(0), marked.get(records.partition, 0)
    if first >= due:
        return None
    return (
        f"of '{records.partition}' from position {first:,}, which was read before",
        f"{due:,} or more: its last next, or that of the mark which seek was given",
    )


def _values_mistake(name: str, values: Any, rows: int, other: str) -> Mistake:
    if not isinstance(values, Values):
        return f"whose {name} are {shown(values)}", f"engine.types.Values {other}".rstrip(", ")
    data, bounds = values.data, values.bounds
    for part, array, dtype in (("data", data, np.uint8), ("bounds", bounds, np.int64)):
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            what = f"whose {name}.{part} is {shown(array)}"
            return what, f"a numpy array of {np.dtype(dtype)}, of one dimension"
    if not bounds.size or bounds[0] < 0 or bounds[-1] > len(data) or (np.diff(bounds) < 0).any():
        what = f"whose {name}.bounds leave their data of {counted(len(data), 'byte')}, or decrease"
        return what, "the places where each value begins, and the last ends"
    return _count_mistake(name, len(values), rows)


def _count_mistake(name: str, count: int, rows: int) -> Mistake:
    if count == rows:
        return None
    return f"of {counted(rows, 'position')} and {count:,} {name}", ONE_EACH


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _value(value: object) -> str:
    """Return a short value as it is written, any other by its type."""
    short = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if short and len(repr(value)) < 40 else shown(value)


__all__ = ["is_number", "records_mistake", "rejects_mistake", "shown"]
