"""How many fields each row of a CSV has."""

from __future__ import annotations

import numpy as np

from connectors.formats.kernels.swar import ONES, compiled, equal, load, occurrences


@compiled
def count_fields(data, bounds, delimiter, quote, counts):
    """Write the number of fields of each row to `counts`; a delimiter between quotes is text.
    -1: a quote stays open. Eight bytes are counted at a time up to a row's first quote."""
    delimiters, quotes = ONES * np.uint64(delimiter), ONES * np.uint64(quote)
    for i in range(len(counts)):
        at, end = bounds[i], bounds[i + 1]
        count = 1
        while at + 8 <= end:
            word = load(data, at)
            if quote >= 0 and equal(word, quotes):
                break
            count += occurrences(word, delimiters)
            at += 8
        quoted = False
        start = at == bounds[i] or data[at - 1] == delimiter
        while at < end:
            byte = data[at]
            if quoted:
                quoted = byte != quote
            elif byte == quote:
                # Only a quote at the start of a field opens one, or the second of a doubled quote.
                quoted = start or data[at - 1] == quote
            elif byte == delimiter:
                count += 1
            start = byte == delimiter and not quoted
            at += 1
        counts[i] = -1 if quoted else count


__all__ = ["count_fields"]
