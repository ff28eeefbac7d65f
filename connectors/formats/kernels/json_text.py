"""JSON texts as bytes: joined, blank, halved pairs, quoted words."""

from __future__ import annotations

import numba
import numpy as np

from connectors.formats.kernels.bytes import BACKSLASH, DQUOTE, LF, MINUS, SPACE


@numba.njit(nogil=True, cache=True)
def join(data, bounds, out):
    """Join values, one per line: a line break inside a value is white space in JSON, so it
    becomes a blank."""
    to = 0
    for i in range(len(bounds) - 1):
        for at in range(bounds[i], bounds[i + 1]):
            byte = data[at]
            out[to] = SPACE if byte == LF else byte
            to += 1
        out[to] = LF
        to += 1


@numba.njit(nogil=True, cache=True)
def mark_blank(data, bounds, keep):
    for i in range(len(keep)):
        if not keep[i]:
            data[bounds[i] : bounds[i + 1]] = SPACE


@numba.njit(nogil=True, cache=True)
def has_pair(data, first, second):
    """Return whether the one byte is followed by the other somewhere: at the speed of memory, so
    that a dearer search is for the few buffers that need it."""
    hit = np.uint8(0)
    for i in range(len(data) - 1):
        hit |= np.uint8(data[i] == first) & np.uint8(data[i + 1] == second)
    return hit != 0


@numba.njit(nogil=True, cache=True)
def quote_words(data, bounds, out, ends):
    """Copy with NaN, Infinity and -Infinity, which are not JSON, as strings; write where lines
    end to `ends`. Return the length."""
    to = 0
    for line in range(len(bounds) - 1):
        inside = False
        at = bounds[line]
        while at < bounds[line + 1]:
            byte = data[at]
            size = 1
            if inside:
                if byte == BACKSLASH and at + 1 < bounds[line + 1]:
                    size = 2
                inside = byte != DQUOTE
            elif byte == DQUOTE:
                inside = True
            elif byte == 78 or byte == 73 or byte == MINUS:
                size = _word_size(data, at, bounds[line + 1])
            word = size > 2
            if word:
                out[to] = DQUOTE
                to += 1
            for i in range(size):
                out[to] = data[at + i]
                to += 1
            if word:
                out[to] = DQUOTE
                to += 1
            at += size
        ends[line + 1] = to
    return to


@numba.njit(nogil=True, cache=True)
def _word_size(data, at, end):
    """Return the length of NaN, Infinity or -Infinity at `at`; 1 for anything else."""
    for word in (b"NaN", b"Infinity", b"-Infinity"):
        if at + len(word) <= end:
            same = True
            for i in range(len(word)):
                if data[at + i] != word[i]:
                    same = False
                    break
            if same:
                return len(word)
    return 1


__all__ = ["has_pair", "join", "mark_blank", "quote_words"]
