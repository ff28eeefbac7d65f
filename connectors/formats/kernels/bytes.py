"""Bytes of ASCII that compiled loops look for, and the white space between them."""

from __future__ import annotations

from connectors.formats.kernels.swar import compiled

TAB, LF, CR, SPACE = 9, 10, 13, 32
DQUOTE, BACKSLASH = 34, 92
PLUS, COMMA, MINUS, POINT, COLON = 43, 44, 45, 46, 58
ZERO, NINE = 48, 57
OPEN_ARRAY, CLOSE_ARRAY = 91, 93
OPEN_OBJECT, CLOSE_OBJECT = 123, 125
LOWER_E = 101


@compiled
def after_blanks(data, at, end):
    """Return the index after JSON's white space."""
    while at < end and (data[at] == SPACE or data[at] == LF or data[at] == CR or data[at] == TAB):
        at += 1
    return at


__all__ = [
    "BACKSLASH", "CLOSE_ARRAY", "CLOSE_OBJECT", "COLON", "COMMA", "CR", "DQUOTE", "LF", "LOWER_E",
    "MINUS", "NINE", "OPEN_ARRAY", "OPEN_OBJECT", "PLUS", "POINT", "SPACE", "TAB", "ZERO",
    "after_blanks",
]  # fmt: skip
