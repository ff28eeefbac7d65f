"""Times in Arrow data that polars would wrap, or take for nulls: they reject their rows.

polars counts seconds in milliseconds, and a product beyond 64 bits becomes another time. A time of
day outside 24 hours becomes null.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from connectors.formats.values.calendar import BEYOND, DAYS, flag

DAY = 86_400
LONGEST = (2**63 - 1) // 1000
"""The most seconds whose milliseconds have 64 bits."""
OUTSIDE = "a time of day outside 24 hours"
RANGES: Mapping[pa.DataType, tuple[int, int, str]] = {
    pa.timestamp("s"): (-DAYS * DAY, DAYS * DAY, BEYOND),
    pa.duration("s"): (-LONGEST, LONGEST, "a duration too long for milliseconds"),
    pa.time32("s"): (0, DAY - 1, OUTSIDE),
    pa.time32("ms"): (0, DAY * 10**3 - 1, OUTSIDE),
    pa.time64("us"): (0, DAY * 10**6 - 1, OUTSIDE),
    pa.time64("ns"): (0, DAY * 10**9 - 1, OUTSIDE),
}
"""The first and the last number that polars reads as it is, and what others are."""


def as_numbers(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the same columns with numbers in place of such times; memory is shared."""
    kinds = [_numbers(field.type) for field in batch.schema]
    columns = [
        column if column.type == kind else column.view(kind)
        for column, kind in zip(batch.columns, kinds, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def flag_out_of_range(
    frame: pl.DataFrame, schema: pa.Schema, numbers: pa.RecordBatch
) -> pl.DataFrame:
    """Return the frame with nulls in place of such times out of range, and the reason why their
    rows are rejects; see `connectors.formats.values.calendar.flag`.

    Args:
        schema: the types that the columns had before polars took them.
        numbers: the columns `as_numbers`, valid in full.
    """
    for field, column in zip(schema, numbers.columns, strict=True):
        if holds_times(field.type):
            for what, mask in _wrong(field.type, column).items():
                raw = pl.from_arrow(column)
                assert isinstance(raw, pl.Series)
                frame = flag(frame, field.name, pl.Series(mask), pl.lit(raw), what)
    return frame


def holds_times(dtype: pa.DataType) -> bool:
    """Return whether a type has such times, also in lists and objects."""
    return bool(_numbers(dtype) != dtype)


def _numbers(dtype: pa.DataType) -> pa.DataType:
    """Return the type of the same memory with numbers in place of such times; of a map, a list of
    objects."""
    if _without_zone(dtype) in RANGES or pa.types.is_date64(dtype):
        return pa.int32() if dtype.bit_width == 32 else pa.int64()
    if isinstance(dtype, pa.BaseExtensionType):
        inner = _numbers(dtype.storage_type)
        return dtype if inner == dtype.storage_type else inner
    if pa.types.is_dictionary(dtype):
        return pa.dictionary(dtype.index_type, _numbers(dtype.value_type), dtype.ordered)
    inside = [dtype.field(i) for i in range(dtype.num_fields)]
    fields = [field.with_type(_numbers(field.type)) for field in inside]
    if fields == inside:
        return dtype
    if pa.types.is_struct(dtype):
        return pa.struct(fields)
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(fields[0], dtype.list_size)
    return pa.large_list(fields[0]) if pa.types.is_large_list(dtype) else pa.list_(fields[0])


def _wrong(dtype: pa.DataType, numbers: pa.Array) -> dict[str, NDArray[np.bool_]]:
    """Return the rows with a time out of range, shape (n,), by what it is."""
    if isinstance(dtype, pa.BaseExtensionType):
        return _wrong(dtype.storage_type, numbers)
    if pa.types.is_dictionary(dtype):
        return _wrong(dtype.value_type, numbers.dictionary_decode())
    if pa.types.is_struct(dtype):
        fields = zip(dtype, numbers.flatten(), strict=True)
        return reduce(_either, (_wrong(field.type, values) for field, values in fields), {})
    if dtype.num_fields:
        inside = _wrong(dtype.field(0).type, numbers.flatten())
        return {what: _rows_with(mask, numbers) for what, mask in inside.items()}
    if (kind := _without_zone(dtype)) not in RANGES:
        return {}
    import pyarrow.compute as pc  # its functions are made while it is imported, in 40 ms

    first, last, what = RANGES[kind]
    outside = pc.or_(pc.less(numbers, first), pc.greater(numbers, last)).fill_null(False)
    return {what: outside.to_numpy(zero_copy_only=False)} if pc.any(outside).as_py() else {}


def _either(
    one: dict[str, NDArray[np.bool_]], other: dict[str, NDArray[np.bool_]]
) -> dict[str, NDArray[np.bool_]]:
    """Return the rows in one of them."""
    return one | {what: mask | one.get(what, False) for what, mask in other.items()}


def _rows_with(elements: NDArray[np.bool_], lists: pa.Array) -> NDArray[np.bool_]:
    """Return the rows whose lists have one of the elements, shape (n,)."""
    import pyarrow.compute as pc

    sizes = pc.list_value_length(lists).fill_null(0).to_numpy()
    mask = np.zeros(len(lists), np.bool_)
    mask[np.repeat(np.arange(len(lists)), sizes)[elements]] = True
    return mask


def _without_zone(dtype: pa.DataType) -> pa.DataType:
    return pa.timestamp(dtype.unit) if pa.types.is_timestamp(dtype) else dtype


__all__ = ["as_numbers", "flag_out_of_range", "holds_times"]
