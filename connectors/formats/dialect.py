"""How a CSV is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The dialect of a CSV.

    Attributes:
        delimiter: between fields; one ASCII character.
        quote: around a field that holds delimiters or line ends; empty for none.
        decimal: between the whole digits of a number and the others, ``.`` or ``,``.
        comment: lines that begin with it are no rows; None for none.
        preamble: lines before the header that begin with it are no rows.
        sep_line: whether a line such as ``sep=;``, which Excel writes before the header, names the
            delimiter and is no row.
        null_values: fields that stand for a missing value, besides the empty one.
    """

    delimiter: str = ","
    quote: str = '"'
    decimal: Literal[".", ","] = "."
    comment: str | None = None
    preamble: str | None = None
    sep_line: bool = False
    null_values: tuple[str, ...] = ()

    @property
    def quote_byte(self) -> int | np.uint8:
        """The quote as a byte, which compiled loops compare faster; or -1, which no byte is."""
        return np.uint8(ord(self.quote)) if self.quote else -1

    def description(self) -> str:
        """Return what differs from the default, as a declaration; empty if nothing does."""
        usual = Dialect()
        parts = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}"
            for name in ("delimiter", "quote", "decimal", "comment", "null_values")
            if (value := getattr(self, name)) != getattr(usual, name)
        ]
        if self.preamble:
            parts.append(f'lines that begin with "{self.preamble}" before its header left out')
        if self.sep_line:
            parts.append("a first line that names the delimiter (sep=) left out")
        return ", ".join(parts)


__all__ = ["Dialect"]
