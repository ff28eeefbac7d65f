"""Bytes of ASCII that compiled loops look for."""

from __future__ import annotations

TAB, LF, CR, SPACE = 9, 10, 13, 32
DQUOTE, BACKSLASH = 34, 92
PLUS, COMMA, MINUS, POINT, COLON = 43, 44, 45, 46, 58
ZERO, NINE = 48, 57
OPEN_ARRAY, CLOSE_ARRAY = 91, 93
OPEN_OBJECT, CLOSE_OBJECT = 123, 125
LOWER_E = 101

__all__ = [
    "BACKSLASH", "CLOSE_ARRAY", "CLOSE_OBJECT", "COLON", "COMMA", "CR", "DQUOTE", "LF", "LOWER_E",
    "MINUS", "NINE", "OPEN_ARRAY", "OPEN_OBJECT", "PLUS", "POINT", "SPACE", "TAB", "ZERO",
]  # fmt: skip
