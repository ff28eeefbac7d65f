"""Text that says numbers, or true and false, in a way that no cast reads; and the SQL that does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

MOST = 0.99
"""Share of a column's texts that must be written so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """A way to write numbers.

    Attributes:
        words: what is special about it.
        pattern: every number that is written so, or in no special way.
        sql: the number, of ``{}``, the column.
    """

    words: str
    pattern: str
    sql: str

    def read(self, column: str) -> str:
        """A key of a 'derive' stage's columns that makes numbers of a column, TOML."""
        quoted = '"' + column.replace('"', '""') + '"'
        key, sql = (
            json.dumps(text, ensure_ascii=False) for text in (column, self.sql.format(quoted))
        )
        return f"{key} = {sql}"


NOTATIONS = (
    Notation(
        words="with a comma between thousands",
        pattern=r"^[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?$",
        sql="CAST(REPLACE({}, ',', '') AS DOUBLE)",
    ),
    Notation(
        words="with a decimal comma",
        pattern=r"^[+-]?\d+(,\d+)?$",
        sql="CAST(REPLACE({}, ',', '.') AS DOUBLE)",
    ),
    Notation(
        words="with a point between thousands and a decimal comma",
        pattern=r"^[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?$",
        sql="CAST(REPLACE(REPLACE({}, '.', ''), ',', '.') AS DOUBLE)",
    ),
    Notation(
        words="with a space between thousands",
        pattern=r"^[+-]?(\d{1,3}( \d{3})+|\d+)([.,]\d+)?$",
        sql="CAST(REPLACE(REPLACE({}, ' ', ''), ',', '.') AS DOUBLE)",
    ),
    Notation(
        words="with an apostrophe between thousands",
        pattern=r"^[+-]?(\d{1,3}('\d{3})+|\d+)(\.\d+)?$",
        sql="CAST(REPLACE({}, '''', '') AS DOUBLE)",
    ),
    Notation(
        words="in percent",
        pattern=r"^[+-]?\d+([.,]\d+)?\s?%$",
        sql="CAST(TRIM(REPLACE(REPLACE({}, '%', ''), ',', '.')) AS DOUBLE) / 100",
    ),
)
"""The first one that fits is meant."""
TRUTHS = (
    ("yes", "no"), ("y", "n"), ("t", "f"), ("on", "off"), ("ja", "nein"), ("j", "n"),
    ("wahr", "falsch"), ("oui", "non"), ("o", "n"), ("vrai", "faux"), ("si", "no"),
    ("s\u00ed", "no"), ("s\u00ec", "no"), ("verdadero", "falso"), ("vero", "falso"),
    ("sim", "n\u00e3o"), ("ja", "nee"), ("waar", "onwaar"), ("ja", "nej"),
    ("tak", "nie"), ("da", "net"),
)  # fmt: skip
"""Words for true and false."""


def counts(texts: pl.Series) -> list[int]:
    """How many of the texts each of `NOTATIONS` reads; null is none."""
    stripped = texts.str.strip_chars()
    return [int(stripped.str.contains(one.pattern).sum()) for one in NOTATIONS]


def notation(read: Sequence[int], known: int, numbers: int) -> Notation | None:
    """The one that reads (nearly) all texts of a column, which casts do not.

    Args:
        read: what `counts` says of the column.
        known: its texts.
        numbers: those of them that a cast reads.
    """
    if not known or numbers >= MOST * known:
        return None
    return next((one for one, n in zip(NOTATIONS, read, strict=False) if n >= MOST * known), None)


def truth(values: set[str]) -> tuple[str, str] | None:
    """The values that say true and false, as they are spelt; None where they do not."""
    spelt = {value.strip().lower(): value for value in values}
    found = next((pair for pair in TRUTHS if set(pair) == set(spelt)), None)
    if found is None or len(values) != 2:
        return None
    return spelt[found[0]], spelt[found[1]]


def hint(column: str, texts: pl.Series) -> str | None:
    """A sentence about a column of text of which these values were seen."""
    texts = texts.drop_nulls()
    numbers = int(texts.str.strip_chars().cast(pl.Float64, strict=False).is_not_null().sum())
    found = notation(counts(texts), len(texts), numbers)
    if found is not None:
        return (
            f"'{column}' is text: numbers {found.words} ('{texts[0]}'). A 'derive' stage makes "
            f"numbers of it: {found.read(column)}"
        )
    return None


__all__ = ["NOTATIONS", "Notation", "counts", "hint", "notation", "truth"]
