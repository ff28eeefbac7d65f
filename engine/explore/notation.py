"""Text that stands for numbers or booleans in a notation no cast reads; and the SQL that reads
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from engine.types import Source
from engine.types.plural import counted
from engine.types.toml import toml_value

MIN_SHARE = 0.99
"""The share of a column's texts that must have the notation."""
MOST_WORDS = 5
"""The most distinct words between numbers that may be missing values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """A notation for numbers.

    Attributes:
        words: what is special about it.
        pattern: every number that is written so, or in no special way.
        sql: the number, of ``{}``, the column.
        decimal: its decimal point; empty where it may be either.
    """

    words: str
    pattern: str
    sql: str
    decimal: str = ""

    def read(self, column: str, *, all_fit: bool = True) -> str:
        """Return a key of a 'derive' stage's columns that parses the column, as TOML; texts that
        do not fit become null."""
        quoted = '"' + column.replace('"', '""') + '"'
        sql = self.sql if all_fit else self.sql.replace("CAST(", "TRY_CAST(", 1)
        key, sql = (toml_value(text) for text in (column, sql.format(quoted)))
        return f"{key} = {sql}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the texts of a column write numbers.

    Attributes:
        notation: None where a cast reads them.
        words: the few words that stand between the numbers -> in how many rows.
        odd: texts that are neither number nor one of these words.
        null_values: whether the source can be told which words mean a missing value.
    """

    notation: Notation | None
    words: Mapping[str, int]
    odd: int
    null_values: bool = True

    def read(self, column: str) -> str:
        """Return `Notation.read`; empty without a notation."""
        if self.notation is None:
            return ""
        return self.notation.read(column, all_fit=not self.words and not self.odd)

    @property
    def plain(self) -> bool:
        """Whether a cast reads the numbers."""
        return self.notation in (None, PLAIN)

    @property
    def but(self) -> str:
        """The end of a sentence about the texts that are not numbers; empty if all are."""
        parts = [f"{word!r} in {counted(n, 'row')}" for word, n in self.words.items()]
        if self.odd:
            parts.insert(0, counted(self.odd, "value that is none", "values that are none"))
        exceptions = f" but for {', '.join(parts)}" if parts else ""
        if self.words and self.null_values:
            values = toml_value(list(self.words))
            exceptions += f": [source] null_values = {values} reads words as missing"
        return exceptions


PLAIN = Notation(words="as a cast reads them", pattern="", sql="CAST({} AS DOUBLE)")
"""The notation of a cast, for a stage to read it among words."""
DECIMAL_COMMA = Notation(
    words="with a decimal comma",
    pattern=r"^[+-]?\d+(,\d+)?$",
    sql="CAST(REPLACE({}, ',', '.') AS DOUBLE)",
    decimal=",",
)
"""The notation that a CSV's own settings read."""
CURRENCY = "(?:[\u20ac$\u00a3\u00a5]|EUR|USD|GBP|CHF|JPY)"
"""The signs and codes of currencies that are known."""


def _price(words: str, whole: str, cents: str, sql: str, decimal: str = "") -> Notation:
    """Return the notation of prices: one or two digits after the decimal point, as more are groups
    of thousands."""
    number = rf"(?:{whole}|\d+)(?:{cents}\d{{1,2}})?"
    bare = rf"REGEXP_REPLACE({{}}, '\s*{CURRENCY}\s*', '')"
    return Notation(
        words=f"in a currency, {words}",
        pattern=rf"^[+-]?(?:{CURRENCY}\s*)?[+-]?{number}(?:\s*{CURRENCY})?$",
        sql=f"CAST({sql.replace('{}', bare)} AS DOUBLE)",
        decimal=decimal,
    )


NOTATIONS = (
    Notation(
        words="with a comma between thousands",
        pattern=r"^[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?$",
        sql="CAST(REPLACE({}, ',', '') AS DOUBLE)",
        decimal=".",
    ),
    DECIMAL_COMMA,
    Notation(
        words="with a point between thousands and a decimal comma",
        pattern=r"^[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?$",
        sql="CAST(REPLACE(REPLACE({}, '.', ''), ',', '.') AS DOUBLE)",
        decimal=",",
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
        decimal=".",
    ),
    Notation(
        words="in percent",
        pattern=r"^[+-]?\d+([.,]\d+)?\s?%$",
        sql="CAST(TRIM(REPLACE(REPLACE({}, '%', ''), ',', '.')) AS DOUBLE) / 100",
    ),
    _price(
        "with a comma between thousands",
        r"\d{1,3}(?:,\d{3})+",
        r"\.",
        "REPLACE({}, ',', '')",
        ".",
    ),
    _price(
        "with a point between thousands and a decimal comma",
        r"\d{1,3}(?:\.\d{3})+",
        ",",
        "REPLACE(REPLACE({}, '.', ''), ',', '.')",
        ",",
    ),
    _price(
        "with a space between thousands",
        r"\d{1,3}(?: \d{3})+",
        "[.,]",
        "REPLACE(REPLACE({}, ' ', ''), ',', '.')",
    ),
    _price(
        "with an apostrophe between thousands",
        r"\d{1,3}(?:'\d{3})+",
        r"\.",
        "REPLACE({}, '''', '')",
        ".",
    ),
)
"""The notations; of those that fit equally well, the first applies."""
BOOLEAN_PAIRS = (
    ("yes", "no"), ("y", "n"), ("t", "f"), ("on", "off"), ("ja", "nein"), ("j", "n"),
    ("wahr", "falsch"), ("oui", "non"), ("o", "n"), ("vrai", "faux"), ("si", "no"),
    ("s\u00ed", "no"), ("s\u00ec", "no"), ("verdadero", "falso"), ("vero", "falso"),
    ("sim", "n\u00e3o"), ("ja", "nee"), ("waar", "onwaar"), ("ja", "nej"),
    ("tak", "nie"), ("da", "net"),
)  # fmt: skip
"""Words for true and false."""


def counts(texts: pl.Series) -> list[int]:
    """Count the texts that each of `NOTATIONS` reads; null is not counted."""
    stripped = texts.str.strip_chars()
    digits = stripped.filter(stripped.str.contains(r"\d"))  # each reads a number
    return [int(digits.str.contains(one.pattern).sum()) for one in NOTATIONS]


def words(texts: pl.Series) -> dict[str, int]:
    """Return texts without a digit that no cast reads as a number -> how many; null is not
    counted."""
    stripped = texts.drop_nulls().str.strip_chars().rename("word")
    tally = stripped.filter(~stripped.str.contains(r"\d")).value_counts(sort=True)
    numbers = tally.get_column("word").cast(pl.Float64, strict=False)
    return dict(tally.filter(numbers.is_null()).iter_rows())


def reading(
    read: Sequence[int],
    known: int,
    numbers: int,
    words: Mapping[str, int] | None,
    *,
    null_values: bool,
    decimal: object = ".",
) -> Reading | None:
    """Return how (nearly) all texts of a column write numbers, apart from a few words; None if
    they do not.

    Args:
        read: what `counts` says of the column.
        known: its texts.
        numbers: those of them that a cast reads.
        words: what `words` says of it; None where there are too many different ones.
        null_values: whether the source can be told which words mean a missing value; where it
            cannot, a stage reads numbers among words.
        decimal: the decimal point with which the source reads numbers.
    """
    if decimal == ",":
        numbers = read[NOTATIONS.index(DECIMAL_COMMA)]
    gaps = {} if words is None or len(words) > MOST_WORDS else words
    rest = known - sum(gaps.values())
    if 2 * rest < known or not rest:
        return None
    plain = None if null_values or not gaps else PLAIN
    notations = [*zip(NOTATIONS, read, strict=False)]
    if decimal == ",":
        notations.sort(key=lambda each: each[0].decimal == ".")
    notation, most = max([(plain, numbers), *notations], key=lambda each: each[1])
    if most < MIN_SHARE * rest:
        return None
    return Reading(notation=notation, words=gaps, odd=rest - most, null_values=null_values)


def truth(values: set[str]) -> tuple[str, str] | None:
    """Return the values for true and false, as spelt; None if there are none."""
    spelt = {value.strip().lower(): value for value in values}
    matching = next((pair for pair in BOOLEAN_PAIRS if set(pair) == set(spelt)), None)
    if matching is None or len(values) != 2:
        return None
    return spelt[matching[0]], spelt[matching[1]]


def reads_null_values(source: Source) -> bool:
    """Return whether the source can be told which words mean a missing value."""
    return source.in_effect().get("format") == "csv"


def decimal_of(source: Source) -> object:
    """Return the decimal point with which the source reads numbers."""
    return source.in_effect().get("decimal", ".")


def hint(column: str, texts: pl.Series, *, null_values: bool, decimal: object = ".") -> str | None:
    """Return a sentence about a text column with these values; see `reading`."""
    texts = texts.drop_nulls()
    numbers = int(texts.str.strip_chars().cast(pl.Float64, strict=False).is_not_null().sum())
    gaps = words(texts)
    matching = reading(
        counts(texts), len(texts), numbers, gaps, null_values=null_values, decimal=decimal
    )
    padded = bool(texts.str.contains(r"^\s*[+-]?0\d").any())
    if matching is None or (matching.plain and padded):
        return None
    if matching.notation is not None:
        first = texts.filter(~texts.str.strip_chars().is_in(list(gaps)))[0]
        return (
            f"'{column}' is text: numbers {matching.notation.words} ('{first}'){matching.but}. "
            f"A 'derive' stage makes numbers of it: {matching.read(column)}"
        )
    if not matching.but:
        return None
    declared = f'{toml_value(column)} = "float64" in [source.schema]'
    return f"'{column}' is text: numbers{matching.but}; with {declared} such rows are rejected."


__all__ = [
    "DECIMAL_COMMA", "MOST_WORDS", "NOTATIONS", "Notation", "Reading", "counts", "decimal_of",
    "hint", "reading", "reads_null_values", "truth", "words",
]  # fmt: skip
