"""One walk over flat JSON objects: their fields to columns."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from connectors.formats.kernels.bytes import (
    CLOSE_OBJECT,
    COLON,
    COMMA,
    DQUOTE,
    LOWER_E,
    MINUS,
    NINE,
    OPEN_OBJECT,
    PLUS,
    POINT,
    ZERO,
    after_blanks,
)
from connectors.formats.kernels.swar import HIGH, ONES, compiled, digits, equal, first, load, number

FLOAT, INT64, INT32, BOOL, TEXT, STRING = range(6)
"""What a column accepts: `TEXT` numbers and words too, as written, `STRING` strings only."""
UNSEEN, VALUE, NULL = 0, 1, 2
LEFT, TAKEN, WIDE = 0, 1, 2
"""The verdict on a line: not sure, taken, taken if it is UTF-8."""
QUOTES, ESCAPES, BLANKS = ONES * np.uint8(34), ONES * np.uint8(92), ONES * np.uint8(32)
TRUE, FALS, NONE = (np.uint64(int.from_bytes(w, "little")) for w in (b"true", b"fals", b"null"))
SIGNS = np.array([1.0, -1.0])
TENS = np.array([10**k for k in range(9)])
GLUE = 8
"""The most words between two values that are expected again."""
STRANGERS = 32
"""The positions in a line at which a key that is not a column is remembered."""
DONE = -2
MOST_DIGITS = 18
POWERS = np.array([float(10**k) for k in range(23)])
LEAST, MOST = -290, 270
"""The powers of ten in `DOUBLED`; beyond, a product could lose bits or overflow."""


def _doubled() -> NDArray[np.float64]:
    exact = [Fraction(10) ** k for k in range(LEAST, MOST + 1)]
    return np.array([(float(x), float(x - Fraction(float(x)))) for x in exact])


DOUBLED = _doubled()
"""10**k as the sum of two doubles, from k = LEAST on."""


@compiled
def _string(data, at, end):
    """Return the index of a string's closing quote, and whether all bytes were ASCII; -1 if it
    does not end, or holds an escape or a control character."""
    seen = np.uint64(0)
    while at < end:
        word = load(data, at)
        stops = equal(word, QUOTES) | equal(word, ESCAPES) | ((word - BLANKS) & ~word & HIGH)
        if stops:
            n = first(stops)
            at += n
            if at >= end or data[at] != DQUOTE:
                break
            seen |= word & ((np.uint64(1) << np.uint64(8 * n)) - np.uint64(1))
            return at, seen & HIGH == 0
        seen |= word
        at += 8
    return -1, True


@compiled
def _column(data, start, stop, names, bounds, expected):
    """Return the column of a key, trying the expected one first; -1 for none."""
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


@compiled
def _literal(data, at, end):
    """Return the index after true, false or null, and which it is: 1, 0, 2; -1 for anything
    else."""
    word = load(data, at) & np.uint64(0xFFFFFFFF)
    if word == TRUE and at + 4 <= end:
        return at + 4, 1
    if word == FALS and at + 5 <= end and data[at + 4] == LOWER_E:
        return at + 5, 0
    if word == NONE and at + 4 <= end:
        return at + 4, 2
    return -1, 0


@compiled
def _digits(data, at, end, mantissa):
    """Return the index after a run of digits, and the integer of those and the earlier ones."""
    word = load(data, at)
    n = digits(word)
    while n == 8 and at < end:
        mantissa = mantissa * 100_000_000 + number(word, 8)
        at += 8
        word = load(data, at)
        n = digits(word)
    if 0 < n < 8:
        mantissa = mantissa * TENS[n] + number(word, n)
        at += n
    return at, mantissa


@compiled
def _number(data, at, end):
    """Return the index after a number; its digits as one integer, their number, the power of ten
    to multiply with, and whether it is written as an integer. -1 if it is not a number, and an
    index after `end` if it does not end before."""
    begin, power, whole = at, 0, True
    mantissa = np.int64(data[at]) - 48
    if mantissa < 0 or mantissa > 9:
        return -1, mantissa, 0, 0, True
    at += 1
    if ZERO <= data[at] <= NINE:
        if mantissa == 0:
            return -1, mantissa, 0, 0, True
        at, mantissa = _digits(data, at, end, mantissa)
    count = at - begin - np.int64(data[begin] == ZERO)
    if data[at] == POINT:
        whole = False
        at += 1
        point = at
        at, mantissa = _digits(data, at, end, mantissa)
        power = point - at
        if power == 0:
            return -1, mantissa, 0, 0, True
        zero = count == 0
        count -= power
        if zero and count > MOST_DIGITS:  # unless they begin with zeros
            while point < at and data[point] == ZERO:
                point += 1
                count -= 1
    if data[at] | 32 == LOWER_E:
        whole = False
        at += 1
        sign = 1
        if data[at] == PLUS or data[at] == MINUS:
            sign = 44 - int(data[at])
            at += 1
        exponent, start = 0, at
        while at < end and ZERO <= data[at] <= NINE:
            exponent = min(exponent * 10 + int(data[at]) - 48, 100_000)
            at += 1
        if at == start:
            return -1, mantissa, 0, 0, True
        power += sign * exponent
    return at, mantissa, count, power, whole


@compiled
def _product(mantissa, power):
    """Return the double nearest to mantissa * 10**power, and whether that is certain."""
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


@compiled
def _key(data, at, end, fresh, names, bounds, expected):
    """Go from the end of a value (or a line's start) to the next value's first byte; return its
    column, -1 for none, and whether the key is ASCII. -1 if unsure; column `DONE` at the end of
    the line."""
    at = after_blanks(data, at, end)
    if at >= end or data[at] != (OPEN_OBJECT if fresh else COMMA):
        if (
            not fresh
            and at < end
            and data[at] == CLOSE_OBJECT
            and after_blanks(data, at + 1, end) == end
        ):
            return at, DONE, True
        return -1, 0, True
    at = after_blanks(data, at + 1, end)
    if fresh and at < end and data[at] == CLOSE_OBJECT:
        return (at if after_blanks(data, at + 1, end) == end else -1), DONE, True
    if at >= end or data[at] != DQUOTE:
        return -1, 0, True
    stop, ascii = _string(data, at + 1, end)
    if stop < 0:
        return -1, 0, True
    column = _column(data, at + 1, stop, names, bounds, expected)
    at = after_blanks(data, stop + 1, end)
    if at >= end or data[at] != COLON:
        return -1, 0, True
    at = after_blanks(data, at + 1, end)
    return (at if at < end else -1), column, ascii


@compiled
def _learned(data, start, stop, guess, column, ascii, glue, masks, leads):
    """Expect these bytes in this place from now on, if they are not too many."""
    size = stop - start
    leads[guess, 0] = 0
    if size > 8 * GLUE:
        return
    for k in range((size + 7) >> 3):
        left = size - 8 * k
        mask = ~np.uint64(0)
        if left < 8:
            mask = (np.uint64(1) << np.uint64(8 * left)) - np.uint64(1)
        masks[guess, k] = mask
        glue[guess, k] = load(data, start + 8 * k) & mask
    leads[guess, 0], leads[guess, 1], leads[guess, 2] = size, column, np.int64(ascii)


@compiled
def _line(
    data, at, end, row, shift, names, name_bounds, kinds, slots, floats, ints, bools, texts, seen,
    glue, masks, leads,
):  # fmt: skip
    """Return the verdict on a line, and store its values."""
    wide = TAKEN
    guess = step = expected = 0
    while True:
        size = leads[guess, 0]
        same = size > 0 and at + size <= end
        if same:
            for k in range((size + 7) >> 3):
                if load(data, at + 8 * k) & masks[guess, k] != glue[guess, k]:
                    same = False
                    break
        if same:
            at += size
            if data[at] <= 32:  # more of them than in the line before
                at = after_blanks(data, at, end)
            column, ascii = leads[guess, 1], leads[guess, 2] != 0
        else:
            start = at
            at, column, ascii = _key(data, at, end, step == 0, names, name_bounds, expected)
            if at < 0:
                return LEFT
            if column == DONE:
                return wide
            _learned(data, start, at, guess, column, ascii, glue, masks, leads)
        if at >= end:
            return LEFT
        if not ascii:
            wide = WIDE
        counts = column >= 0
        if counts and seen[column, row] != UNSEEN:  # a key that stands there twice
            return LEFT
        expected_kind = kinds[column] if column >= 0 else -1
        byte = data[at]
        minus = byte == MINUS  # as good as chance: nothing may wait for it
        if minus | (np.uint8(byte - 48) < 10):
            begin = at
            at, mantissa, count, power, whole = _number(data, at + np.int64(minus), end)
            if at < 0:
                return LEFT
            if expected_kind == TEXT:  # as it is written
                if counts:
                    texts[0, slots[column], row] = shift + begin
                    texts[1, slots[column], row] = at - begin
                    seen[column, row] = VALUE
            elif column >= 0:
                if (count > MOST_DIGITS) | (minus & (mantissa == 0)):
                    return LEFT
                if expected_kind == FLOAT:
                    if mantissa <= 1 << 53 and -22 <= power <= 22:
                        value = float(mantissa)
                        value = value * POWERS[power] if power >= 0 else value / POWERS[-power]
                    else:
                        value, sure = _product(mantissa, power)
                        if not sure or (whole and np.int64(value) != mantissa):
                            return LEFT
                    if counts:
                        floats[slots[column], row] = value * SIGNS[np.int64(minus)]
                elif expected_kind == INT64 or expected_kind == INT32:
                    value_int = mantissa * (1 - 2 * np.int64(minus))
                    if not whole or (
                        expected_kind == INT32 and not -(1 << 31) <= value_int < (1 << 31)
                    ):
                        return LEFT
                    if counts:
                        ints[slots[column], row] = value_int
                else:
                    return LEFT
                if counts:
                    seen[column, row] = VALUE
        elif byte == DQUOTE:
            stop, ascii = _string(data, at + 1, end)
            if stop < 0 or (column >= 0 and expected_kind < TEXT):
                return LEFT
            if not ascii:
                wide = WIDE
            if counts:
                texts[0, slots[column], row] = shift + at + 1
                texts[1, slots[column], row] = stop - at - 1
                seen[column, row] = VALUE
            at = stop + 1
        else:
            begin = at
            at, literal = _literal(data, at, end)
            if at < 0 or (
                column >= 0 and literal != 2 and expected_kind != BOOL and expected_kind != TEXT
            ):
                return LEFT
            if counts:
                if expected_kind == TEXT:
                    texts[0, slots[column], row] = shift + begin
                    texts[1, slots[column], row] = at - begin
                elif literal != 2:
                    bools[slots[column], row] = literal == 1
                seen[column, row] = NULL if literal == 2 else VALUE
        if at >= end:
            return LEFT
        if data[at] == CLOSE_OBJECT:
            return wide if after_blanks(data, at + 1, end) == end else LEFT
        step += 1
        if column >= 0:
            guess = 1 + column
            expected = guess if guess < len(kinds) else 0
        else:
            guess = 1 + len(kinds) + min(step, STRANGERS - 1)


@compiled
def walk_flat(
    data, bounds, row, shift, names, name_bounds, kinds, slots, floats, ints, bools, texts, seen,
    verdicts, glue, masks, leads,
):  # fmt: skip
    """Walk lines of `data`, which continues for `SPARE` bytes after the last, as rows from `row`
    on.

    What stands between two values is the same in most lines, so it is first compared with what was
    there in the line before, eight bytes at a time (speculation on the structure: Y. Li et al.,
    "Mison: A Fast JSON Parser for Data Analytics", VLDB 2017). A guess is for the place behind a
    column, or behind a key that is none at its place in the line: of `leads`, the first number is
    how many bytes stand there (0: nothing is known), then the column, and whether all are ASCII.
    """
    for i in range(len(bounds) - 1):
        verdicts[row + i] = _line(
            data, bounds[i], bounds[i + 1], row + i, shift, names, name_bounds, kinds, slots,
            floats, ints, bools, texts, seen, glue, masks, leads,
        )  # fmt: skip


__all__ = [
    "BOOL",
    "FLOAT",
    "GLUE",
    "INT32",
    "INT64",
    "LEFT",
    "STRANGERS",
    "STRING",
    "TEXT",
    "VALUE",
    "WIDE",
    "walk_flat",
]
