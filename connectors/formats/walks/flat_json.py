"""Decodes flat JSON objects to columns, in one compiled walk over their bytes.

It takes the lines that it is sure of: keys and strings without escapes, numbers that have one
nearest double beyond doubt, each value of its column's type; numbers in a column of text keep the
text that they are written as. The others are left to the parser:
`Ndjson` puts both together, and `tests/connectors/formats/test_flat_json.py` holds that the result
is the parser's own.

Numbers: where mantissa and power of ten are exact doubles (at most 2**53 and 10**22), one
multiplication or division rounds once (W. D. Clinger, "How to Read Floating Point Numbers
Accurately", 1990). Elsewhere the product is taken in twice the precision (T. J. Dekker, "A
Floating-Point Technique for Extending the Available Precision", 1971), and counts where the error
that is left cannot change how it rounds (A. Ziv, "Fast Evaluation of Elementary Mathematical
Functions with Correctly Rounded Last Bit", 1991).
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from connectors.formats.kernels.flat_json import (
    BOOL,
    FLOAT,
    GLUE,
    INT32,
    INT64,
    LEFT,
    STRANGERS,
    STRING,
    TEXT,
    VALUE,
    WIDE,
    walk_flat,
)
from connectors.formats.kernels.rows import gather, is_utf8
from engine.types import Schema, Values
from engine.types.arrays import read_only

FLAT_TYPES: dict[pl.DataType, int] = {
    pl.Float64(): FLOAT, pl.Int64(): INT64, pl.Int32(): INT32, pl.Boolean(): BOOL,
    pl.String(): TEXT,
}  # fmt: skip
SPARE = 64
"""The bytes that must follow the last line of a buffer."""


class FlatJson:
    """A schema of plain columns, as arrays for the walk."""

    def __init__(self, schema: Schema, *, strict: bool = False) -> None:
        self._schema = schema
        kinds = [FLAT_TYPES[dtype] for dtype in schema.values()]
        self._kinds = np.array(kinds, np.int64)
        self._taken = np.where(strict & (self._kinds == TEXT), STRING, self._kinds)
        # A column's row in the array of its kind.
        same = [INT64 if dtype == INT32 else dtype for dtype in kinds]
        self._slots = np.array([same[:i].count(k) for i, k in enumerate(same)], np.int64)
        names = [name.encode() for name in schema]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._bounds = np.cumsum([0, *map(len, names)]).astype(np.int64)

    @classmethod
    def of(cls, schema: Schema, *, strict: bool = False) -> FlatJson | None:
        """Return the schema; None if the walk does not support a column's type.

        Args:
            strict: only strings are text; a line where something else stands there is left.
        """
        known = bool(schema) and all(dtype in FLAT_TYPES for dtype in schema.values())
        return cls(schema, strict=strict) if known else None

    def decode(self, values: Values) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        """Return columns of n rows, and which of the n lines were taken; the other rows are
        garbage."""
        n, kinds = len(values), self._kinds
        floats = np.empty((int((kinds == FLOAT).sum()), n))
        ints = np.empty((int(((kinds == INT64) | (kinds == INT32)).sum()), n), np.int64)
        bools = np.zeros((int((kinds == BOOL).sum()), n), np.bool_)
        texts = np.zeros((2, int((kinds == TEXT).sum()), n), np.int64)
        seen = np.zeros((len(kinds), n), np.uint8)
        verdicts = np.zeros(n, np.uint8)
        # The walk reads words, so the last lines of a buffer go where there is room behind them.
        inner = int(np.searchsorted(values.bounds[1:], len(values.data) - SPARE, "right"))
        last = values.bounds[inner:]
        rest = np.zeros(int(last[-1] - last[0]) + SPARE, np.uint8)
        rest[:-SPARE] = values.data[last[0] : last[-1]]
        guesses = 1 + len(kinds) + STRANGERS
        glue, masks = np.zeros((2, guesses, GLUE), np.uint64)
        leads = np.zeros((guesses, 3), np.int64)
        for data, bounds, row, shift in (
            (values.data, values.bounds[: inner + 1], 0, 0),
            (rest, last - last[0], inner, int(last[0])),
        ):
            walk_flat(
                read_only(data), read_only(bounds), row, shift, self._names, self._bounds,
                self._taken, self._slots, floats, ints, bools, texts, seen, verdicts, glue, masks,
                leads,
            )  # fmt: skip
        taken = verdicts != LEFT
        if (verdicts == WIDE).any():
            taken &= is_utf8(values)
        columns = []
        present = seen == VALUE
        complete = present.all(axis=1)
        for i, (name, dtype) in enumerate(self._schema.items()):
            kind, slot = int(kinds[i]), self._slots[i]
            if kind == TEXT:
                column = _text(values.data, texts[0, slot], texts[1, slot], present[i] & taken)
                columns.append(column.alias(name))
                continue
            raw = {FLOAT: floats, BOOL: bools}.get(kind, ints)[slot]
            column = pl.Series(name, raw)
            if not complete[i]:
                nothing = pl.Series(name, [None], dtype=column.dtype)
                column = column.zip_with(pl.Series(present[i]), nothing)
            columns.append(column.cast(dtype) if kind == INT32 else column)
        return pl.DataFrame(columns), taken


def _text(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    present: NDArray[np.bool_],
) -> pl.Series:
    """Return pieces of a buffer, known to be UTF-8, as a column."""
    gathered = gather(data, starts, np.where(present, sizes, -1))
    valid = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    buffers = [valid, pa.py_buffer(gathered.bounds), pa.py_buffer(gathered.data)]
    array = pa.Array.from_buffers(pa.large_string(), len(starts), buffers)
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


__all__ = ["FlatJson"]
