"""CSV dialect sniffing for files without declared settings.

A comma that splits the header is the delimiter, whatever else is in it; the others count only where
exactly one of them splits the header and the rows alike.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import polars as pl

from connectors.formats.dialect import Dialect
from connectors.formats.inference.infer import NULL_WORDS, infer_type

HEAD = 1 << 18
"""The bytes of a file that are inspected."""
ROWS = 1_000
DELIMITERS = (";", "\t", "|")
"""The delimiters besides the comma."""
ODD_DELIMITERS = (":", "^", "~", "!", "#", "&", "$", "%", "*", "\x01", "\x1e", "\x1f", " ")
"""Characters that are suggested as delimiters, and not taken for such."""
WITH_COMMAS = (";", "\t")
"""The delimiters of files whose numbers may have decimal commas."""
ODD = 0.1
"""The share of rows that may have another number of fields than the header, and of values that may
be words among numbers."""
NUMBERLIKE = r"[+-]?\d[\d.,]*"
MAX_TITLE_LINES = 20
"""The lines in which a header is looked for below a title."""
COMMENT = "#"
BOM = b"\xef\xbb\xbf"
SEP_LINE = re.compile(rb'"?sep=([\t -~])"?(?:\r?\n|\Z)', re.IGNORECASE)
"""The line that Excel reads and writes before a header, to name the delimiter."""
THOUSANDS = r"^[+-]?[1-9]\d{0,2}([.,]\d{3})+$"
"""A number whose points or commas may separate thousands."""


def sniff_dialect(
    head: bytes, given: Mapping[str, Any], *, usual_decimal: str = "."
) -> dict[str, Any]:
    """Return the fields of `connectors.formats.csv.Dialect` that the first lines of a file show,
    besides those given.

    Args:
        usual_decimal: the decimal point where these lines do not show which it is.
    """
    head, named = split_sep_line(head)
    text = head.decode("latin-1")  # whatever it is: what is looked for is ASCII
    comment = given.get("comment", COMMENT) or ""
    before, body = _parted(text, comment)
    dialect: dict[str, Any] = {"sep_line": True} if named else {}
    if before and "comment" not in given:
        if _is_preamble(before, body, given):
            dialect["preamble"] = COMMENT
        else:
            body = text
    quoted = "quote" in given or '"' in body
    single = None if quoted else _single_quoted(body, given.get("delimiter") or named)
    if single is not None:
        dialect["quote"] = "'"
    quote = given.get("quote", dialect.get("quote", '"'))
    delimiter = given.get("delimiter") or named or single or _delimiter(body, quote)
    if delimiter != ",":
        dialect["delimiter"] = delimiter
    missing = (*NULL_WORDS, *given.get("null_values", ()))
    if delimiter in WITH_COMMAS:
        decimal = _decimal(_rows(body, delimiter, quote), missing) or usual_decimal
        dialect |= {"decimal": ","} if decimal == "," else {}
    return {name: value for name, value in dialect.items() if name not in given}


def split_sep_line(head: bytes) -> tuple[bytes, str | None]:
    """Return the first bytes of a file without its byte order mark and a line such as ``sep=;``;
    and the delimiter that this line names, None without one."""
    head = head.removeprefix(BOM)
    line = SEP_LINE.match(head)
    return (head, None) if line is None else (head[line.end() :], line[1].decode())


def unclear(head: bytes, dialect: Dialect) -> str | None:
    """Return a delimiter that may be meant, if the first lines of a file have only one column: one
    that the header has, or another one that splits the header and the rows alike."""
    text = split_sep_line(head)[0].decode("latin-1")
    _, body = _parted(text, dialect.comment or dialect.preamble or "")
    header = _rows(body, dialect.delimiter, dialect.quote)[:1]
    if not header or len(header[0]) != 1:
        return None
    if plain := next((d for d in DELIMITERS if d in header[0][0]), None):
        return plain
    return next((d for d in ODD_DELIMITERS if d in header[0][0] and _splits(body, d)), None)


def below_title(head: bytes, dialect: Dialect) -> tuple[str, str] | None:
    """Return the first line of a file and the one that seems to be its header, if a title stands
    above that, as in reports; None without one. Most columns have no name in a title; where it has
    no delimiters, the rows say which character it is."""
    text = split_sep_line(head)[0].decode("latin-1")
    _, body = _parted(text, dialect.comment or dialect.preamble or "")
    first = _rows(body, dialect.delimiter, dialect.quote)[:1]
    if not first:
        return None
    width = len(first[0])
    named = sum(name.strip() != "" for name in first[0])
    if width == 1:
        for delimiter in (",", *DELIMITERS):
            rows = _rows(body, delimiter, dialect.quote)
            at = _header_below(rows)
            below = rows[at + 1 :] if at else []
            if at and len(rows[0]) == 1 and len(below) > 1 and _has_numbers(below):
                return first[0][0], delimiter.join(rows[at])
    elif named and 2 * named <= width and width - named > 1:
        rows = _rows(body, dialect.delimiter, dialect.quote)
        at = _header_below(rows)
        if at and len(rows[at]) == width:
            return dialect.delimiter.join(first[0]), dialect.delimiter.join(rows[at])
    return None


def _header_below(rows: Sequence[Sequence[str]]) -> int:
    """Return which of the rows after the first may be the header: all columns have a name, none is
    a number, and all rows below it are as wide; 0 for none."""
    for at, row in enumerate(rows[1:MAX_TITLE_LINES], start=1):
        names = [name.strip() for name in row]
        if len(names) > 1 and all(names) and len({*names}) == len(names):
            plain = not any(re.fullmatch(NUMBERLIKE, name) for name in names)
            alike = len(rows) > at + 1 and _agree(rows[at:], odd=0.0)
            return at if plain and alike else 0
    return 0


def _has_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a column of these rows has numbers alone."""
    columns = zip(*rows, strict=True)
    return any(all(re.fullmatch(NUMBERLIKE, value.strip()) for value in c) for c in columns)


def _splits(body: str, delimiter: str) -> bool:
    """Return whether a delimiter splits the header, and the rows alike; two words may be a name."""
    rows = _rows(body, delimiter, '"')
    return len(rows) > 1 and len(rows[0]) > 1 + (delimiter == " ") and _agree(rows, odd=ODD)


def _parted(text: str, comment: str) -> tuple[list[str], str]:
    """Return the lines before the header that begin with the comment character, and what
    follows."""
    before, at = [], 0
    while comment and text.startswith(comment, at):
        end = text.find("\n", at) + 1 or len(text)
        before.append(text[at:end].rstrip("\r\n"))
        at = end
    return before, text[at:]


def _is_preamble(before: Sequence[str], body: str, given: Mapping[str, Any]) -> bool:
    """Return whether the lines are not part of the table; the last of them might be its header."""
    quote = given.get("quote", '"')
    delimiter = given.get("delimiter") or _delimiter(body, quote)
    width = _width(body, delimiter, quote)
    return width > 1 and _width(before[-1], delimiter, quote) != width


def _single_quoted(body: str, delimiter: str | None) -> str | None:
    """Return the delimiter if every name of the header is in single quotes."""
    for d in (delimiter,) if delimiter else (",", *DELIMITERS):
        names = rf"'[^'{re.escape(d)}\r\n]*'"
        header = re.match(rf"{names}(?:{re.escape(d)}{names})+\r?(?:\n|$)", body)
        if header and _agree(_rows(body, d, "'"), odd=0.0):
            return d
    return None


def _delimiter(body: str, quote: str) -> str:
    if _is_well_formed(body, ",", quote) and _width(body, ",", quote) > 1:
        return ","
    fitting = [
        d
        for d in DELIMITERS
        if _is_well_formed(body, d, quote)
        and _width(body, d, quote) > 1
        and _agree(_rows(body, d, quote), odd=ODD)
    ]
    return fitting[0] if len(fitting) == 1 else ","


def _is_well_formed(body: str, delimiter: str, quote: str) -> bool:
    """Return whether quotes occur in the header only as in files with this delimiter."""
    d, q = re.escape(delimiter), re.escape(quote)
    if not q:
        return True
    name = rf"(?:{q}(?:[^{q}]|{q}{q})*+{q}|[^{q}{d}\r\n]*+)"
    return re.match(rf"{name}(?:{d}{name})*+\r?(?:\n|$)", body) is not None


def _rows(text: str, delimiter: str, quote: str) -> list[list[str]]:
    """Return the first rows without blank ones; none if they cannot be read so."""
    quoting: Any = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quotechar=quote or None, quoting=quoting)
    try:
        return [row for row in islice(reader, ROWS) if row]
    except csv.Error:
        return []


def _width(text: str, delimiter: str, quote: str) -> int:
    """Return the number of fields of the header."""
    rows = _rows(text, delimiter, quote)
    return len(rows[0]) if rows else 0


def _agree(rows: Sequence[Sequence[str]], *, odd: float) -> bool:
    """Return whether rows have as many fields as the header, except for a share of odd ones."""
    different = sum(len(row) != len(rows[0]) for row in rows[1:])
    return bool(rows) and different <= odd * (len(rows) - 1)


def _decimal(rows: Sequence[Sequence[str]], missing: Sequence[str]) -> str | None:
    """Return the decimal point: a comma if some numbers of a column certainly have one, and none
    certainly a point; None if it may be either. A few words among them say nothing of it, nor does
    a point or a comma that may stand between thousands.

    Args:
        missing: fields that stand for a missing value.
    """
    seen = False
    kept = [row for row in rows[1:] if len(row) == len(rows[0])]
    for values in zip(*kept, strict=True):
        column = pl.Series(values).str.strip_chars()
        column = column.filter((column != "") & ~column.is_in(missing))
        numbers = column.filter(column.str.contains(r"\d"))
        column = numbers if len(column) - len(numbers) <= ODD * len(column) else column
        if infer_type(column) == pl.Float64():
            if _is_certain(column, "."):
                return "."
        elif infer_type(column, ",") == pl.Float64():
            seen |= _is_certain(column, ",")
    return "," if seen else None


def _is_certain(numbers: pl.Series, point: str) -> bool:
    """Return whether this character stands in some of the numbers, and not between thousands."""
    with_point = numbers.filter(numbers.str.contains(point, literal=True))
    return not with_point.str.contains(THOUSANDS).all()


__all__ = ["HEAD", "below_title", "sniff_dialect", "split_sep_line", "unclear"]
