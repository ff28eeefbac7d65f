"""Text of one byte a character to UTF-8."""

from __future__ import annotations

from connectors.formats.kernels.swar import compiled


@compiled
def recode(data, table, bounds, out):
    to = 0
    for byte in data:
        for at in range(bounds[byte], bounds[byte + 1]):
            out[to] = table[at]
            to += 1


__all__ = ["recode"]
