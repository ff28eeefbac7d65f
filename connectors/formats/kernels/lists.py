"""The elements of lists in JSON text."""

from __future__ import annotations

from connectors.formats.kernels import json_scan
from connectors.formats.kernels.bytes import (
    CLOSE_ARRAY,
    CLOSE_OBJECT,
    COMMA,
    DQUOTE,
    MINUS,
    NINE,
    OPEN_ARRAY,
    OPEN_OBJECT,
    ZERO,
    after_blanks,
)
from connectors.formats.kernels.swar import compiled

STRING, INTEGER, FLOAT, BOOL, ARRAY, OBJECT, NULL = range(1, len(json_scan.TOKENS))
"""The kind of an element: an index into `TOKENS` of `json_scan`."""
WORD = 8
"""NaN, Infinity or -Infinity, which are not JSON."""
ESCAPED = 16
"""Added to `STRING` if it holds escapes."""


@compiled
def _element(data, at, end):
    """Return the end and kind of the element at `at`; -1 if there is none."""
    byte = data[at]
    if byte == DQUOTE:
        stop, odd = json_scan._string(data, at + 1, end)
        return (stop, STRING + (ESCAPED if odd > 0 else 0)) if odd >= 0 else (-1, 0)
    if byte == OPEN_ARRAY or byte == OPEN_OBJECT:
        token = ARRAY if byte == OPEN_ARRAY else OBJECT
        depth = 0
        while at < end:
            byte = data[at]
            if byte == DQUOTE:
                at, odd = json_scan._string(data, at + 1, end)
                if odd < 0:
                    return -1, 0
                continue
            at += 1
            if byte == OPEN_ARRAY or byte == OPEN_OBJECT:
                depth += 1
            elif byte == CLOSE_ARRAY or byte == CLOSE_OBJECT:
                depth -= 1
                if depth == 0:
                    return at, token
        return -1, 0
    if ZERO <= byte <= NINE or (byte == MINUS and at + 1 < end and ZERO <= data[at + 1] <= NINE):
        stop, count, odd = json_scan._number(data, at, end)
        return (stop, FLOAT if odd & 1 else INTEGER) if count >= 0 else (-1, 0)
    for word, token in ((b"null", NULL), (b"true", BOOL), (b"false", BOOL), (b"NaN", WORD),
                        (b"Infinity", WORD), (b"-Infinity", WORD)):  # fmt: skip
        if json_scan._word(data, at, end, word) == len(word):
            return at + len(word), token
    return -1, 0


@compiled
def find_elements(data, bounds, starts, stops, tokens, sizes):
    """How many elements all arrays have; see `Elements`. A string's span is without its quotes."""
    m = 0
    for i in range(len(sizes)):
        at, end = after_blanks(data, bounds[i], bounds[i + 1]), bounds[i + 1]
        if at == end or data[at] != OPEN_ARRAY:
            continue
        first = m
        at = after_blanks(data, at + 1, end)
        closed = at < end and data[at] == CLOSE_ARRAY
        while not closed and at < end:
            begin = at
            at, token = _element(data, at, end)
            if at < 0:
                break
            inner = 1 if token == STRING or token == STRING + ESCAPED else 0
            starts[m], stops[m], tokens[m] = begin + inner, at - inner, token
            m += 1
            at = after_blanks(data, at, end)
            closed = at < end and data[at] == CLOSE_ARRAY
            if at == end or (data[at] != COMMA and not closed):
                break
            if not closed:
                at = after_blanks(data, at + 1, end)
        if closed and after_blanks(data, at + 1, end) == end:
            sizes[i] = m - first
        else:
            m = first
    return m


__all__ = [
    "ARRAY",
    "BOOL",
    "ESCAPED",
    "FLOAT",
    "INTEGER",
    "NULL",
    "OBJECT",
    "STRING",
    "WORD",
    "find_elements",
]
