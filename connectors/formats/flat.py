"""Flat JSON objects straight into columns, by one compiled walk over their bytes.

It takes the lines that it is sure of: keys and strings without escapes, numbers that have one
nearest double beyond doubt, each value of its column's type. The others are left to the parser:
`Ndjson` puts both together, and `tests/connectors/test_flat.py` holds that the result is the
parser's own.

Numbers: where mantissa and power of ten are exact doubles (at most 2**53 and 10**22), one
multiplication or division rounds once (W. D. Clinger, "How to Read Floating Point Numbers
Accurately", 1990). Elsewhere the product is taken in twice the precision (T. J. Dekker, "A
Floating-Point Technique for Extending the Available Precision", 1971), and counts where the error
that is left cannot change how it rounds (A. Ziv, "Fast Evaluation of Elementary Mathematical
Functions with Correctly Rounded Last Bit", 1991).
"""

from __future__ import annotations

from fractions import Fraction

import numba
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from connectors.formats.rows import is_utf8
from engine.types import Schema, Values

FLOAT, INT64, INT32, BOOL, TEXT = range(5)
KINDS: dict[pl.DataType, int] = {
    pl.Float64(): FLOAT, pl.Int64(): INT64, pl.Int32(): INT32, pl.Boolean(): BOOL,
    pl.String(): TEXT,
}  # fmt: skip
UNSEEN, VALUE, NULL = 0, 1, 2
LEFT, TAKEN, WIDE = 0, 1, 2
"""Verdicts on a line: not sure, taken, taken if it is UTF-8."""
WORDS = np.frombuffer(b"falsetrue null ", np.uint8).reshape(3, 5)
POWERS = np.array([float(10**k) for k in range(23)])
LEAST, MOST = -290, 270
"""Powers of ten in `DOUBLED`; beyond, a product could lose bits or overflow."""


def _doubled() -> NDArray[np.float64]:
    exact = [Fraction(10) ** k for k in range(LEAST, MOST + 1)]
    return np.array([(float(x), float(x - Fraction(float(x)))) for x in exact])


DOUBLED = _doubled()
"""10**k as the sum of two doubles, from k = LEAST on."""


class Flat:
    """A schema of plain columns, as arrays for the walk."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        kinds = [KINDS[kind] for kind in schema.values()]
        self._kinds = np.array(kinds, np.int64)
        # A column's row in the array of its kind.
        same = [INT64 if kind == INT32 else kind for kind in kinds]
        self._slots = np.array([same[:i].count(k) for i, k in enumerate(same)], np.int64)
        names = [name.encode() for name in schema]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._bounds = np.cumsum([0, *map(len, names)]).astype(np.int64)

    @classmethod
    def of(cls, schema: Schema) -> Flat | None:
        """None where a column is of a type that the walk does not know."""
        known = bool(schema) and all(kind in KINDS for kind in schema.values())
        return cls(schema) if known else None

    def decode(self, values: Values) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        """Columns of n rows, and which of the n lines were taken; the other rows are garbage."""
        n, kinds = len(values), self._kinds
        floats = np.zeros((int((kinds == FLOAT).sum()), n))
        ints = np.zeros((int(((kinds == INT64) | (kinds == INT32)).sum()), n), np.int64)
        bools = np.zeros((int((kinds == BOOL).sum()), n), np.bool_)
        texts = np.zeros((2, int((kinds == TEXT).sum()), n), np.int64)
        seen = np.zeros((len(kinds), n), np.uint8)
        verdicts = np.zeros(n, np.uint8)
        _walk(
            values.data, values.bounds, self._names, self._bounds, kinds, self._slots, floats, ints,
            bools, texts, seen, verdicts,
        )  # fmt: skip
        taken = verdicts != LEFT
        if (verdicts == WIDE).any():
            taken &= is_utf8(values)
        columns = []
        for i, (name, kind) in enumerate(self._schema.items()):
            slot, there = self._slots[i], seen[i] == VALUE
            if kinds[i] == TEXT:
                column = _text(values.data, texts[0, slot], texts[1, slot], there & taken)
            else:
                raw = {FLOAT: floats, BOOL: bools}.get(int(kinds[i]), ints)[slot]
                column = pl.Series(raw)
                if not there.all():
                    column = column.zip_with(
                        pl.Series(there), pl.Series([None], dtype=column.dtype)
                    )
            columns.append(column.cast(kind).alias(name))
        return pl.DataFrame(columns), taken


def _text(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    there: NDArray[np.bool_],
) -> pl.Series:
    """Pieces of a buffer, known to be UTF-8, as a column."""
    bounds = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(np.where(there, sizes, 0), out=bounds[1:])
    out = np.empty(int(bounds[-1]), np.uint8)
    _copy(data, starts, bounds, out)
    valid = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    buffers = [valid, pa.py_buffer(bounds), pa.py_buffer(out)]
    array = pa.Array.from_buffers(pa.large_string(), len(starts), buffers)
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


@numba.njit(nogil=True, cache=True)
def _copy(data, starts, bounds, out):  # type: ignore[no-untyped-def]
    """Pieces side by side."""
    for i in range(len(starts)):
        for j in range(bounds[i + 1] - bounds[i]):
            out[bounds[i] + j] = data[starts[i] + j]


@numba.njit(nogil=True, cache=True)
def _blanks(data, at, end):  # type: ignore[no-untyped-def]
    """Behind the white space."""
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@numba.njit(nogil=True, cache=True)
def _string(data, at, end):  # type: ignore[no-untyped-def]
    """Behind a string's last byte (where its quote is), and whether all bytes were ASCII; -1 where
    it does not end, or holds an escape or a control character."""
    high = np.uint8(0)
    while at < end:
        byte = data[at]
        if byte == 34:
            return at, high < 128
        if byte == 92 or byte < 32:
            break
        high |= byte
        at += 1
    return -1, True


@numba.njit(nogil=True, cache=True)
def _column(data, start, stop, names, bounds, expected):  # type: ignore[no-untyped-def]
    """Which column a key is, the expected one first; -1 for none."""
    n = len(bounds) - 1
    for k in range(n):
        column = expected + k
        if column >= n:
            column -= n
        first = bounds[column]
        if bounds[column + 1] - first != stop - start:
            continue
        same = True
        for j in range(stop - start):
            if data[start + j] != names[first + j]:
                same = False
                break
        if same:
            return column
    return -1


@numba.njit(nogil=True, cache=True)
def _literal(data, at, end):  # type: ignore[no-untyped-def]
    """Behind true, false or null, and which: 1, 0, 2; -1 for anything else."""
    for what in range(3):
        word = WORDS[what]
        size = 5 - int(what > 0)
        same = end - at >= size
        for j in range(size):
            same = same and data[at + j] == word[j]
        if same:
            return at + size, what
    return -1, 0


@numba.njit(nogil=True, cache=True)
def _number(data, at, end):  # type: ignore[no-untyped-def]
    """Behind a number; its digits as one whole number, how many they are, the power of ten to
    multiply it with, and whether it is written as a whole one. -1 where it is none."""
    mantissa, digits, power, whole = 0, 0, 0, True
    begin = at
    while at < end and 48 <= data[at] <= 57:
        mantissa = mantissa * 10 + (data[at] - 48)
        digits += 1
        at += 1
    if digits == 0 or (digits > 1 and data[begin] == 48):
        return -1, mantissa, 0, 0, True
    if data[begin] == 48:
        digits = 0
    if at < end and data[at] == 46:
        whole = False
        at += 1
        point = at
        while at < end and 48 <= data[at] <= 57:
            mantissa = mantissa * 10 + (data[at] - 48)
            if digits > 0 or data[at] != 48:
                digits += 1
            at += 1
        power = point - at
        if power == 0:
            return -1, mantissa, 0, 0, True
    if at < end and (data[at] == 101 or data[at] == 69):
        whole = False
        at += 1
        sign = 1
        if at < end and (data[at] == 43 or data[at] == 45):
            sign = 44 - data[at]
            at += 1
        exponent, first = 0, at
        while at < end and 48 <= data[at] <= 57:
            exponent = min(exponent * 10 + data[at] - 48, 100_000)
            at += 1
        if at == first:
            return -1, mantissa, 0, 0, True
        power += sign * exponent
    return at, mantissa, digits, power, whole


@numba.njit(nogil=True, cache=True)
def _product(mantissa, power):  # type: ignore[no-untyped-def]
    """The double nearest to mantissa * 10**power, and whether that is certain."""
    if power < LEAST or power > MOST:
        return 0.0, False
    upper = float(mantissa >> 32) * 4294967296.0
    lower = float(mantissa & 0xFFFFFFFF)
    a = upper + lower
    a_rest = lower - (a - upper)
    b, b_rest = DOUBLED[power - LEAST, 0], DOUBLED[power - LEAST, 1]
    split = 134217729.0 * a
    a_high = split - (split - a)
    split = 134217729.0 * b
    b_high = split - (split - b)
    a_low, b_low = a - a_high, b - b_high
    top = a * b
    rest = ((a_high * b_high - top) + a_high * b_low + a_low * b_high) + a_low * b_low
    rest += a * b_rest + a_rest * b
    value = top + rest
    rest -= value - top
    doubt = value * 2.0**-96
    return value, value + (rest + doubt) == value and value + (rest - doubt) == value


@numba.njit(nogil=True, cache=True)
def _line(  # type: ignore[no-untyped-def]
    data, at, end, row, names, name_bounds, kinds, slots, floats, ints, bools, texts, seen
):
    """The verdict on a line, its values put in their places."""
    wide = TAKEN
    at = _blanks(data, at, end)
    if at >= end or data[at] != 123:
        return LEFT
    at = _blanks(data, at + 1, end)
    if at < end and data[at] == 125:
        return TAKEN if _blanks(data, at + 1, end) == end else LEFT
    expected = 0
    while True:
        if at >= end or data[at] != 34:
            return LEFT
        stop, ascii = _string(data, at + 1, end)
        if stop < 0:
            return LEFT
        if not ascii:
            wide = WIDE
        column = _column(data, at + 1, stop, names, name_bounds, expected)
        at = _blanks(data, stop + 1, end)
        if at >= end or data[at] != 58:
            return LEFT
        at = _blanks(data, at + 1, end)
        if at >= end:
            return LEFT
        first = column >= 0 and seen[column, row] == UNSEEN  # of two equal keys it counts
        kind = kinds[column] if column >= 0 else -1
        byte = data[at]
        if byte == 34:
            stop, ascii = _string(data, at + 1, end)
            if stop < 0 or (column >= 0 and kind != TEXT):
                return LEFT
            if not ascii:
                wide = WIDE
            if first:
                texts[0, slots[column], row] = at + 1
                texts[1, slots[column], row] = stop - at - 1
                seen[column, row] = VALUE
            at = stop + 1
        elif byte == 45 or 48 <= byte <= 57:
            minus = byte == 45
            at, mantissa, digits, power, whole = _number(data, at + int(minus), end)
            if at < 0:
                return LEFT
            if column >= 0:
                if digits > 18 or (minus and mantissa == 0):
                    return LEFT
                if kind == FLOAT:
                    if mantissa <= 1 << 53 and -22 <= power <= 22:
                        value = float(mantissa)
                        value = value * POWERS[power] if power >= 0 else value / POWERS[-power]
                    else:
                        value, sure = _product(mantissa, power)
                        if not sure:
                            return LEFT
                    if first:
                        floats[slots[column], row] = -value if minus else value
                elif kind == INT64 or kind == INT32:  # noqa: SIM109 - compiled, a tuple is slower
                    value_int = -mantissa if minus else mantissa
                    if (
                        digits > 18
                        or not whole
                        or (kind == INT32 and not -(1 << 31) <= value_int < (1 << 31))
                    ):
                        return LEFT
                    if first:
                        ints[slots[column], row] = value_int
                else:
                    return LEFT
                if first:
                    seen[column, row] = VALUE
        else:
            at, what = _literal(data, at, end)
            if at < 0 or (column >= 0 and what != 2 and kind != BOOL):
                return LEFT
            if first:
                if what != 2:
                    bools[slots[column], row] = what == 1
                seen[column, row] = NULL if what == 2 else VALUE
        at = _blanks(data, at, end)
        if at >= end:
            return LEFT
        if data[at] == 125:
            return wide if _blanks(data, at + 1, end) == end else LEFT
        if data[at] != 44:
            return LEFT
        at = _blanks(data, at + 1, end)
        if column >= 0:
            expected = column + 1 if column + 1 < len(kinds) else 0


@numba.njit(nogil=True, cache=True)
def _walk(  # type: ignore[no-untyped-def]
    data, bounds, names, name_bounds, kinds, slots, floats, ints, bools, texts, seen, verdicts
):
    for row in range(len(verdicts)):
        verdicts[row] = _line(
            data, bounds[row], bounds[row + 1], row, names, name_bounds, kinds, slots, floats, ints,
            bools, texts, seen,
        )  # fmt: skip


__all__ = ["Flat"]
