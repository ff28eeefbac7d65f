"""One walk over JSON of any depth: what a parser would reject, and why."""

from __future__ import annotations

import numba
import numpy as np

from connectors.formats.kernels.bytes import (
    BACKSLASH,
    CLOSE_ARRAY,
    CLOSE_OBJECT,
    COLON,
    COMMA,
    CR,
    DQUOTE,
    LF,
    MINUS,
    NINE,
    OPEN_ARRAY,
    OPEN_OBJECT,
    POINT,
    SPACE,
    TAB,
    ZERO,
)
from connectors.formats.kernels.swar import compiled, copy

FITS, SUSPECT, UNSURE, DEEP = 0, 1, 2, 3
"""The verdict on a line: the parser takes it; a value may not fit its column; only the parser
can tell; the same, because it is nested deeper than `DEPTH`."""
BLANK, NO_OBJECT, ENDS, PLACE, BEHIND, NOT_UTF8 = 10, 11, 12, 13, 14, 15
"""The verdicts on lines that are not a JSON object."""
BROKEN = BLANK
"""From here on, verdicts are on lines that are not a JSON object."""
TOKENS = ("nothing", "string", "integer", "float", "bool", "array", "object", "null")
"""The kinds of values; a line's token of a node is an index into these."""
OTHERS = -2
"""The index of the list elements that no column reads; the parser checks them anyway."""
QUOTE = np.uint8(34)
DEPTH = 128
"""The levels the walk descends; deeper lines are left to the parser (its own limit is 1,024)."""
OBJECT, LIST, TEXT, FLOAT, INT64, INT32, BOOL, DATE, MOMENT, OTHER, STRING, FLOAT32 = range(12)
DECIMAL, INTEGER = 12, 13
"""What a node expects: `TEXT` accepts anything as its text, `STRING` only strings; `DECIMAL` all
numbers, however many digits its column holds; `INTEGER` stands for the other integer sizes."""
VALUE, FIRST_KEY, KEY, FIRST_ITEM, AFTER = range(5)
SAYS = np.arange(256).astype(np.uint8)
SAYS[[*b"bfnrt"]] = [*b"\b\f\n\r\t"]
"""The byte that an escape stands for, by its letter."""
LEADS = np.array([0, 0, 0xC0, 0xE0, 0xF0])
"""The first byte of a UTF-8 character, by its length."""


@numba.njit(nogil=True, cache=True)
def _utf8(data, at, stop):
    """Return whether the bytes are UTF-8 (Unicode, table 3-7)."""
    while at < stop:
        byte = data[at]
        if byte < 0x80:
            at += 1
            continue
        low, high, more = 0x80, 0xBF, 0
        if 0xC2 <= byte <= 0xDF:
            more = 1
        elif 0xE0 <= byte <= 0xEF:
            more = 2
            low = 0xA0 if byte == 0xE0 else 0x80
            high = 0x9F if byte == 0xED else 0xBF
        elif 0xF0 <= byte <= 0xF4:
            more = 3
            low = 0x90 if byte == 0xF0 else 0x80
            high = 0x8F if byte == 0xF4 else 0xBF
        else:
            return False
        if at + more >= stop:
            return False
        if not low <= data[at + 1] <= high:
            return False
        for i in range(2, more + 1):
            if not 0x80 <= data[at + i] <= 0xBF:
                return False
        at += more + 1
    return True


@numba.njit(nogil=True, cache=True)
def _string(data, at, stop):
    """Scan the string at `at`: return (byte after its quote, 1 if it has escapes, 2 if the
    parser must judge them), or (where it breaks, -1), or (end of line, -2) if it has no end."""
    odd = 0
    while at < stop:
        byte = data[at]
        if byte == DQUOTE:
            return at + 1, odd
        if byte == LF:  # the end of the line
            return at, -2
        if byte < 32:
            return at, -1
        if byte != BACKSLASH:
            at += 1
            continue
        odd = max(odd, 1)
        if at + 1 >= stop:
            return stop, -2
        byte = data[at + 1]
        if byte == 117:  # \u: four hex digits; halves of pairs are a matter of their own
            odd = 2
        elif byte not in (34, 92, 47, 98, 102, 110, 114, 116):
            return at + 1, -1
        at += 2
    return stop, -2


@numba.njit(nogil=True, cache=True)
def mark_halves(data, bounds, found):
    """Mark the lines with an escape that is half of a surrogate pair."""
    for line in range(len(found)):
        at, size = bounds[line], bounds[line + 1]
        while at < size:
            if data[at] != BACKSLASH or at + 1 >= size:
                at += 1
            elif data[at + 1] != 117 or at + 6 > size:
                at += 2
            else:
                half = _half(data, at)
                pair = (
                    half == 1
                    and at + 12 <= size
                    and data[at + 6] == BACKSLASH
                    and data[at + 7] == 117
                )
                if pair and _half(data, at + 6) == 2:
                    at += 6
                elif half:
                    found[line] = True
                at += 6


@numba.njit(nogil=True, cache=True)
def _half(data, at):
    """Return whether the escape at `at` is the first (1) or second (2) half of a pair; 0 for
    others."""
    if data[at + 2] | 32 != 100:
        return 0
    digit = data[at + 3] | 32
    if digit == 56 or digit == 57 or digit == 97 or digit == 98:
        return 1
    return 2 if 99 <= digit <= 102 else 0


@numba.njit(nogil=True, cache=True)
def _unescaped(data, at, stop):
    """Return the bytes inside a string with escapes resolved; arbitrary for invalid escapes."""
    out = np.empty(stop - at, np.uint8)
    to = 0
    while at < stop:
        byte = data[at]
        if byte != BACKSLASH or at + 1 >= stop:
            out[to] = byte
            to += 1
            at += 1
        elif data[at + 1] != 117:
            out[to] = SAYS[data[at + 1]]
            to += 1
            at += 2
        elif at + 6 > stop:
            break
        else:
            code = _hex(data, at + 2)
            at += 6
            if 0xD800 <= code < 0xDC00 and at + 6 <= stop and data[at + 1] == 117:
                code = 0x10000 + ((code - 0xD800) << 10) + (_hex(data, at + 2) & 0x3FF)
                at += 6
            size = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
            for i in range(size):  # lead byte, then six bits each (Unicode, table 3-6)
                bits = code >> (6 * (size - 1 - i))
                out[to] = (bits & 0x3F) | 0x80 if i else bits | LEADS[size]
                to += 1
    return out[:to]


@numba.njit(nogil=True, cache=True)
def _hex(data, at):
    """Return the number of four hexadecimal digits."""
    code = 0
    for i in range(at, at + 4):
        byte = int(data[i])
        code = code * 16 + (byte - 48 if byte < 58 else ((byte | 32) - 87) & 15)
    return code


@numba.njit(nogil=True, cache=True)
def mark_twice(data, bounds, names, ends, places, lines, found):
    """Find duplicate keys, see `twice`. `places` becomes a table of the names by their hashes, with
    open addressing, from a power of two of -1; `lines` are the last that had each key, counted from
    1."""
    _place_all(names, ends, places)
    for line in range(len(found)):
        depth, key, expected = 0, False, 0
        at, stop = bounds[line], bounds[line + 1]
        while at < stop:
            byte = data[at]
            at += 1
            if COMMA < byte < OPEN_ARRAY:  # digits and the like: most bytes outside of strings
                continue
            if byte == DQUOTE:
                start, odd = at, False
                while at < stop and data[at] != DQUOTE:
                    if data[at] == BACKSLASH:
                        odd = True
                        at += 1
                    at += 1
                if key:
                    key = False
                    if odd:
                        name = _unescaped(data, start, at)
                        i = _index(name, 0, len(name), names, ends, places, expected)
                    else:
                        i = _index(data, start, at, names, ends, places, expected)
                    if i >= 0:
                        found[line] |= lines[i] == line + 1
                        lines[i] = line + 1
                        expected = i + 1 if i + 1 < len(lines) else 0
                at += 1
            elif byte == COMMA:
                key = depth == 1
            elif byte == OPEN_OBJECT or byte == OPEN_ARRAY:
                depth += 1
                key = byte == OPEN_OBJECT and depth == 1
            elif byte == CLOSE_OBJECT or byte == CLOSE_ARRAY:
                depth -= 1
                if depth == 0:
                    break


@compiled
def _place_all(names, ends, places):
    last = len(places) - 1
    for i in range(len(ends) - 1):
        place = _hash(names, ends[i], ends[i + 1]) & last
        while places[place] >= 0:
            place = (place + 1) & last
        places[place] = i


@compiled
def _hash(data, start, stop):
    """FNV-1a (Fowler, Noll and Vo), folded to 32 bits."""
    value = np.uint64(14695981039346656037)
    for at in range(start, stop):
        value = (value ^ np.uint64(data[at])) * np.uint64(1099511628211)
    return np.int64((value ^ (value >> np.uint64(32))) & np.uint64(0xFFFFFFFF))


@compiled
def _index(data, start, stop, names, ends, places, expected):
    """Return which of the names is there, trying the expected one first; -1 for none."""
    if expected < len(ends) - 1 and _same(
        data, start, stop, names, ends[expected], ends[expected + 1]
    ):
        return expected
    last = len(places) - 1
    place = _hash(data, start, stop) & last
    while places[place] >= 0:
        i = places[place]
        if _same(data, start, stop, names, ends[i], ends[i + 1]):
            return i
        place = (place + 1) & last
    return -1


@compiled
def _same(data, start, stop, names, first, end):
    if stop - start != end - first:
        return False
    for j in range(stop - start):  # noqa: SIM110 - compiled
        if data[start + j] != names[first + j]:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _number(data, at, stop):
    """Scan the number at `at`: return (byte after it, digits, 0 for an integer or 1 for a
    fraction, plus 2 if it is so long or large that the parser must judge it), or (where it
    breaks, -1, 0)."""
    if data[at] == MINUS:
        at += 1
    first = at
    while at < stop and ZERO <= data[at] <= NINE:
        at += 1
    digits = at - first
    if digits == 0 or (digits > 1 and data[first] == ZERO):
        return at, -1, 0
    number_kind = 0
    if at < stop and data[at] == POINT:
        number_kind = 1
        first = at + 1
        at += 1
        while at < stop and ZERO <= data[at] <= NINE:
            at += 1
        if at == first:
            return at, -1, 0
        digits += at - first
    if at < stop and data[at] in (69, 101):
        number_kind = 1
        at += 1
        if at < stop and data[at] in (43, 45):
            at += 1
        first = at
        size = 0
        while at < stop and ZERO <= data[at] <= NINE:
            size = min(size * 10 + data[at] - 48, 10_000)
            at += 1
        if at == first:
            return at, -1, 0
        if size > 250:
            number_kind = 3
    return at, digits, number_kind | 2 if digits > 30 else number_kind


@numba.njit(nogil=True, cache=True)
def quote_texts(data, places, out):
    """Copy with a quote before each of the bytes at these places."""
    at = 0
    for i in range(len(places)):
        stop = places[i]
        copy(data, at, stop - at, out, at + i)
        out[stop + i] = QUOTE
        at = stop
    copy(data, at, len(data) - at, out, at + len(places))


@numba.njit(nogil=True, cache=True)
def _digits(data, at, count):
    """Return the number of `count` digits at `at`, or -1."""
    value = 0
    for i in range(at, at + count):
        if not ZERO <= data[i] <= NINE:
            return -1
        value = value * 10 + data[i] - 48
    return value


@numba.njit(nogil=True, cache=True)
def _moment(data, at, stop, whole):
    """Return whether a date (or, not `whole`, a date with a time) is there in the usual form;
    other forms are parsed with care."""
    size = stop - at
    if size < 10 or data[at + 4] != MINUS or data[at + 7] != MINUS:
        return False
    if _digits(data, at, 4) < 1 or not 1 <= _digits(data, at + 5, 2) <= 12:
        return False
    if not 1 <= _digits(data, at + 8, 2) <= 28:
        return False
    if size == 10:
        return True
    if whole or size < 19 or data[at + 10] not in (32, 84):
        return False
    if data[at + 13] != COLON or data[at + 16] != COLON:
        return False
    if not 0 <= _digits(data, at + 11, 2) <= 23 or not 0 <= _digits(data, at + 14, 2) <= 59:
        return False
    if not 0 <= _digits(data, at + 17, 2) <= 59:
        return False
    at += 19
    if at < stop and data[at] == POINT:
        first = at + 1
        at += 1
        while at < stop and ZERO <= data[at] <= NINE:
            at += 1
        if not 1 <= at - first <= 9:
            return False
    if at < stop and data[at] == 90:
        at += 1
    return at == stop


@numba.njit(nogil=True, cache=True)
def _field(data, at, stop, parent, before, table, names):
    """Return the node below `parent` for the key between `at` and `stop`, or -1. Keys usually
    keep their order, so the one after `before` (or -1) is tried first."""
    first = table[parent, 1]
    node = first if before < 0 or table[before, 2] < 0 else table[before, 2]
    end = node
    while node >= 0:
        start = table[node, 3]
        if table[node, 4] - start == stop - at:
            same = True
            for i in range(stop - at):
                if data[at + i] != names[start + i]:
                    same = False
                    break
            if same:
                return node
        node = table[node, 2]
        if node < 0:
            node = first
        if node == end:
            return -1
    return -1


@numba.njit(nogil=True, cache=True)
def _item(parent, index, table):
    """Return the node below `parent` for a list's element: its own, or that of all others."""
    node = table[parent, 1]
    while node >= 0:
        if table[node, 5] == index or table[node, 5] == OTHERS:
            return node
        node = table[node, 2]
    return -1


@numba.njit(nogil=True, cache=True)
def _word(data, at, stop, word):
    """Return how many bytes of the word are at `at`."""
    for i in range(len(word)):
        if at + i >= stop or data[at + i] != word[i]:
            return i
    return len(word)


@numba.njit(nogil=True, cache=True)
def scan_lines(data, bounds, table, names, verdicts, places, seen, spans, marks):
    kinds = np.empty(DEPTH, np.int64)  # 1 object, 2 list
    nodes = np.empty(DEPTH, np.int64)
    owners = np.empty(DEPTH, np.int64)
    counts = np.empty(DEPTH, np.int64)
    last = np.empty(DEPTH, np.int64)
    for line in range(len(verdicts)):
        verdict, at = _walk(
            data,
            bounds[line],
            bounds[line + 1],
            table,
            names,
            seen[line],
            spans[line],
            kinds,
            nodes,
            owners,
            counts,
            last,
            marks,
        )
        if verdict >= BROKEN and len(marks):
            marks[bounds[line] : bounds[line + 1]] = False
        verdicts[line] = verdict
        places[line] = at - bounds[line]


@numba.njit(nogil=True, cache=True)
def _walk(data, at, stop, table, names, seen, spans, kinds, nodes, owners, counts, last, marks):
    """Walk a line; return (verdict, where it was made). With `marks`, mark the first byte of
    numbers to quote, and the byte after the last. `owners` are the nodes with open values,
    `nodes` those of them that fit."""
    high = np.uint8(0)
    for byte in data[at:stop]:
        high |= byte
    if high >= 0x80 and not _utf8(data, at, stop):
        return NOT_UTF8, at
    verdict = FITS
    many = False  # digits of a whole number, for a float to hold it for sure
    depth = -1
    node = 0
    state = VALUE
    begun = False
    while True:
        while at < stop and data[at] <= SPACE and data[at] in (SPACE, TAB, CR, LF):
            at += 1
        if at == stop:
            if state == AFTER and depth < 0:
                return (SUSPECT if many else verdict), at
            return (ENDS if begun else BLANK), at
        begun = True
        byte = data[at]
        if state == AFTER:
            if depth < 0:
                return BEHIND, at
            at += 1
            if byte == COMMA:
                if kinds[depth] == 1:
                    state = KEY
                else:
                    state = VALUE
                    counts[depth] += 1
                    node = -1
                    if nodes[depth] >= 0:
                        node = _item(nodes[depth], counts[depth], table)
            elif (byte == CLOSE_OBJECT and kinds[depth] == 1) or (
                byte == CLOSE_ARRAY and kinds[depth] == 2
            ):
                if owners[depth] >= 0:
                    spans[owners[depth], 1] = at
                depth -= 1
            else:
                return PLACE, at - 1
            continue
        if state == FIRST_KEY and byte == CLOSE_OBJECT:
            at += 1
            if owners[depth] >= 0:
                spans[owners[depth], 1] = at
            depth -= 1
            state = AFTER
            continue
        if state in (KEY, FIRST_KEY):
            if byte != DQUOTE:
                return PLACE, at
            first = at + 1
            at, odd = _string(data, first, stop)
            if odd < 0:
                return (ENDS if odd == -2 else PLACE), at
            if odd == 2 or (odd and nodes[depth] >= 0):
                verdict = UNSURE
            node = -1
            if nodes[depth] >= 0:
                before = last[depth]
                if odd:
                    name = _unescaped(data, first, at - 1)
                    node = _field(name, 0, len(name), nodes[depth], before, table, names)
                else:
                    node = _field(data, first, at - 1, nodes[depth], before, table, names)
                if node >= 0:
                    last[depth] = node
            while at < stop and data[at] <= SPACE and data[at] in (SPACE, TAB, CR, LF):
                at += 1
            if at == stop:
                return ENDS, at
            if data[at] != COLON:
                return PLACE, at
            at += 1
            state = VALUE
            continue
        if state == FIRST_ITEM:
            if byte == CLOSE_ARRAY:
                at += 1
                if owners[depth] >= 0:
                    spans[owners[depth], 1] = at
                depth -= 1
                state = AFTER
                continue
            node = -1
            if nodes[depth] >= 0:
                node = _item(nodes[depth], 0, table)
        # A value. Of two equal keys the first counts: the second is of no node.
        if node >= 0 and len(seen) and seen[node] != 0:
            node = -1
        expected_kind = -1 if node < 0 else table[node, 0]
        begin = at
        state = AFTER
        if byte == OPEN_OBJECT or byte == OPEN_ARRAY:
            token = 6 if byte == OPEN_OBJECT else 5
            fits = (
                expected_kind == TEXT
                or (expected_kind == OBJECT and token == 6)
                or (expected_kind == LIST and token == 5)
            )
            if depth < 0 and token == 5:
                return NO_OBJECT, at
            depth += 1
            if depth == DEPTH:
                return DEEP, at
            kinds[depth] = 1 if token == 6 else 2
            nodes[depth] = node if fits and expected_kind != TEXT else -1
            owners[depth] = node if len(seen) else -1
            counts[depth] = 0
            last[depth] = -1
            state = FIRST_KEY if token == 6 else FIRST_ITEM
            at += 1
        elif depth < 0:
            return NO_OBJECT, at
        elif byte == DQUOTE:
            token = 1
            first = at + 1
            at, odd = _string(data, first, stop)
            if odd < 0:
                return (ENDS if odd == -2 else PLACE), at
            if odd == 2:
                verdict = UNSURE
            fits = expected_kind in (TEXT, STRING)
            if (expected_kind in (DATE, MOMENT)) and odd == 0:
                fits = _moment(data, first, at - 1, expected_kind == DATE)
        elif byte == 116 or byte == 102 or byte == 110:
            word = b"true" if byte == 116 else (b"false" if byte == 102 else b"null")
            token = 7 if byte == 110 else 4
            same = _word(data, at, stop, word)
            at += same
            if same < len(word):
                return (ENDS if at == stop else PLACE), at
            fits = token == 7 or expected_kind in (TEXT, BOOL)
        elif byte == MINUS or ZERO <= byte <= NINE:
            first = at
            at, digits, odd = _number(data, at, stop)
            if digits < 0:
                return (ENDS if at == stop else PLACE), at
            token = 2 + (odd & 1)
            text = expected_kind in (TEXT, STRING, DECIMAL) or (
                token == 3 and expected_kind in (INT64, INT32, INTEGER)
            )
            if len(marks) and (text or odd >= 2):
                marks[first] = marks[at] = True
            if odd >= 2:
                verdict = UNSURE
            fits = expected_kind in (TEXT, FLOAT, FLOAT32, DECIMAL)
            if odd & 1 == 0 and (expected_kind in (FLOAT, FLOAT32)):
                many |= digits > (15 if expected_kind == FLOAT else 7)
            if odd == 0 and (expected_kind in (INT64, INT32)):
                fits = digits <= (18 if expected_kind == INT64 else 9)
        else:
            return PLACE, at
        if node >= 0:
            if len(seen):
                seen[node] = token
                spans[node, 0] = begin
                spans[node, 1] = at if token != 5 and token != 6 else begin
            if not fits and verdict == FITS:
                verdict = SUSPECT


__all__ = [
    "BEHIND",
    "BLANK",
    "BOOL",
    "BROKEN",
    "DATE",
    "DECIMAL",
    "DEEP",
    "ENDS",
    "FITS",
    "FLOAT",
    "FLOAT32",
    "INT32",
    "INT64",
    "INTEGER",
    "LIST",
    "MOMENT",
    "NOT_UTF8",
    "NO_OBJECT",
    "OBJECT",
    "OTHER",
    "OTHERS",
    "PLACE",
    "STRING",
    "SUSPECT",
    "TEXT",
    "TOKENS",
    "UNSURE",
    "mark_halves",
    "mark_twice",
    "quote_texts",
    "scan_lines",
]
