"""Ends of lines, of which quoted ones are none."""

from __future__ import annotations

import numba
import numpy as np

from connectors.formats.kernels.bytes import CR, LF


@numba.njit(nogil=True, cache=True)
def quoted_ends(data, delimiter, quote, comment, longest, final):
    """Return where each row ends, after its newline; a newline in a quoted field is text.

    A quote that is not closed costs the line it stands in, and no more: where the field never ends
    (in a file that does, or within the longest row), or something else than a delimiter stands
    behind its end in another line, the row ends with the first of its lines.
    """
    ends = np.empty(len(data) + 1, np.int64)
    n = 0
    quoted = False
    start = True
    row = at = 0
    first = -1
    while True:
        lost = False
        if at == len(data):
            if not (final and quoted and first >= 0):
                break
            lost = True
        elif at == row and data[at] == comment:
            while at < len(data) and data[at] != LF:
                at += 1
            if at == len(data):
                break
        byte = data[at] if at < len(data) else np.uint8(0)
        if lost:
            pass
        elif quoted:
            quoted = byte != quote
            if byte == LF and first < 0:
                first = at
            if first >= 0:
                lost = at - row > longest
                if not quoted and at + 1 < len(data):
                    after = data[at + 1]
                    lost |= after != delimiter and after != quote and after != LF and after != CR
        elif byte == quote:
            # Only a quote at the start of a field opens one, or the second of a doubled quote.
            quoted = start or data[at - 1] == quote
        if lost:
            at, quoted, byte = first, False, np.uint8(10)
        start = not quoted and (byte == delimiter or byte == LF)
        at += 1
        if byte == LF and not quoted:
            ends[n] = row = at
            n += 1
            first = -1
    return ends[:n].copy()


__all__ = ["quoted_ends"]
