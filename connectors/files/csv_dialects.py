"""The dialect of a source's CSV files: declared, or sniffed from their first rows."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import polars as pl

from connectors.files.catalog import Catalog
from connectors.formats.csv import Csv
from connectors.formats.dialect import Dialect
from connectors.formats.inference.infer import NULL_WORDS
from connectors.formats.inference.sniff import below_title, sniff_dialect, unclear
from connectors.formats.registry import FILES, require_option
from engine.types import Schema, Snapshot, UserError
from engine.types.toml import toml_value

CSV_SETTINGS = ("delimiter", "quote", "decimal", "comment", "null_values")
"""The settings of the CSV dialect."""

log = logging.getLogger("headrace.files")


class CsvDialects:
    """The dialect of a source's CSV files, their headers and decoders.

    Attributes:
        declared: the fields of a `Dialect` set by settings or by the files' extension.
        sniffed: the fields found in the first file with rows; None before sniffing.
        headers: partition -> its columns, of the files opened so far.
    """

    def __init__(self, catalog: Catalog) -> None:
        """Raises: UserError for CSV settings that do not apply here, or contradict others."""
        self._catalog = catalog
        settings = catalog.settings
        for name in CSV_SETTINGS:
            if name in settings.model_fields_set and getattr(settings, name) is not None:
                require_option(name, catalog.format, FILES)
        self.declared = self._declaration()
        if catalog.format == "csv":
            roles = {"quote": settings.quote, **self.declared}
            _must_differ(roles, ("delimiter", "quote", "comment", "decimal"), "[source]")
        self.sniffed: dict[str, Any] | None = None
        self.headers: dict[str, list[str]] = {}
        self._unclear: str | None = None
        """A delimiter that may be meant instead of the one in use."""
        self._decoders: list[Csv] = []
        self._words: dict[str, set[str]] = {}
        """Column -> fields that may stand for missing values."""
        self._model_null_values: tuple[str, ...] = ()
        """The fields that were missing values in a model's training."""
        self._usual_decimal = "."
        """The decimal point of a model's training, for files that do not show theirs."""

    @property
    def dialect(self) -> Dialect:
        """The dialect: declared, else sniffed, else the default."""
        fields = dict(self.sniffed or {})
        if self._model_null_values:
            words = {*fields.get("null_values", ()), *self._model_null_values}
            fields["null_values"] = tuple(word for word in NULL_WORDS if word in words)
        return Dialect(**{**fields, **self.declared})

    @property
    def found(self) -> str:
        """What the first rows say that is not declared, as a declaration; empty if nothing."""
        sniffed = {k: v for k, v in (self.sniffed or {}).items() if k not in self.declared}
        return Dialect(**sniffed).description()

    def in_effect(self) -> dict[str, Snapshot]:
        """Return the dialect as settings."""
        dialect = dataclasses.asdict(self.dialect)
        return {name: dialect[name] for name in CSV_SETTINGS if name in dialect}

    def decoder(self, headers: Mapping[str, Sequence[str]] | None = None) -> Csv:
        """Return a decoder for these headers, or those of the files; it follows the dialect."""
        own = self.headers if headers is None else headers
        coerce = self._catalog.settings.coerce
        self._decoders.append(Csv(own, self.dialect, coerce=coerce, lenient=True))
        return self._decoders[-1]

    def declare_again(self, model_null_values: Iterable[str], model_decimal: str = ".") -> None:
        """Apply changed settings, and the missing values and the decimal point of a model's
        training. Decoders built before are no longer used."""
        self._model_null_values = tuple(model_null_values)
        self._usual_decimal = model_decimal
        self.declared = self._declaration()
        self._decoders = []

    def use(self, sniffed: dict[str, Any] | None) -> None:
        """Apply a sniffed dialect to the fields that are not declared."""
        self.sniffed = sniffed
        for decoder in self._decoders:
            decoder.dialect = self.dialect

    def sniff(self, head: bytes, name: str) -> None:
        """Sniff the dialect of the first rows of a file; it applies to all.

        Raises: UserError if one character has two roles, or a title stands above the header.
        """
        self.use(sniff_dialect(head, self.declared, usual_decimal=self._usual_decimal))
        roles = dataclasses.asdict(self.dialect)
        _must_differ(roles, ("delimiter", "quote", "comment"), f"{name}:")
        if lines := below_title(head, self.dialect):
            encoding = self._catalog.settings.encoding or "utf-8"
            title, below = (s.encode("latin-1").decode(encoding, "replace")[:80] for s in lines)
            raise UserError(
                f"{name} begins with '{title}', and the names of its columns seem to stand below "
                f"that, in '{below}': expected them in the first line; take the lines above out."
            )
        self._unclear = unclear(head, self.dialect)
        if found := self.found:
            log.info(
                "%s is read with %s: that is how its first rows are written; [source] settings of "
                "these names say otherwise.", name, found,
            )  # fmt: skip

    def require_delimiter(self, named: str, name: str) -> None:
        """Raises: UserError if a file names another delimiter (``sep=;``) than the files are read
        with, unless that is declared."""
        known = self.sniffed is not None and "delimiter" not in self.declared
        if known and named != self.dialect.delimiter:
            raise UserError(
                f"{name} names its delimiter {toml_value(named)} (sep=), and the files before it "
                f"have {toml_value(self.dialect.delimiter)}: expected one delimiter; read them "
                "apart, or convert one."
            )

    def take_header(self, raw: bytes | None, name: str, *, sniffed_now: bool) -> list[str]:
        """Note and return the columns of a file.

        Args:
            raw: its first row, None without one.
            sniffed_now: whether the dialect was sniffed in this file; a doubt is then logged.

        Raises: UserError, see `header`.
        """
        encoding = self._catalog.settings.encoding or "utf-8"
        self.headers[name] = columns = header(raw, name, self.dialect, encoding)
        if sniffed_now and self._unclear is not None:
            log.warning(
                "%s has one column, '%s': where '%s' stands between columns, set [source] "
                "delimiter.", name, *columns, self._unclear,
            )  # fmt: skip
        return columns

    def add_null_values(
        self, null_values: Iterable[str], words: Mapping[str, set[str]] | None = None
    ) -> None:
        """Read these fields as missing values, in addition to the current ones.

        Args:
            words: column -> fields that may be missing values too, see `use_null_words`.
        """
        self._words |= words or {}
        before = (self.sniffed or {}).get("null_values", ())
        both = {*before, *null_values}
        if both - {*before}:
            ordered = tuple(word for word in NULL_WORDS if word in both)
            self.use({**(self.sniffed or {}), "null_values": ordered})

    def use_null_words(self, schema: Schema) -> None:
        """Read words as missing values if they are all that keeps columns from being numbers or
        times, now that a model file declares these, and no text column has them."""
        of_text, others = set[str](), set[str]()
        for column, words in self._words.items():
            dtype = schema.get(column, pl.String())
            (of_text if dtype in (pl.String, pl.Binary) else others).update(words)
        self.add_null_values(others - of_text)

    def _declaration(self) -> dict[str, Any]:
        settings = self._catalog.settings
        declared: dict[str, Any] = {
            name: getattr(settings, name)
            for name in CSV_SETTINGS
            if name in settings.model_fields_set and getattr(settings, name) is not None
        }
        if "comment" in declared:
            declared["comment"] = declared["comment"] or None
        paths = self._catalog.files.values() or map(Path, settings.locations)
        if all(".tsv" in map(str.lower, path.suffixes) for path in paths):
            declared.setdefault("delimiter", "\t")
        return declared


def header(raw: bytes | None, name: str, dialect: Dialect, encoding: str = "utf-8") -> list[str]:
    """Return the column names of a CSV's first row; none without one. A column without a name,
    as before an index or after a last comma, is called by its number: ``column_1`` is the first.

    Raises: UserError when it is in another encoding, or names a column twice.
    """
    if raw is None:
        return []
    quote = dialect.quote or None
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    try:
        lines = io.StringIO(raw.decode(encoding).strip("\r\n"))
        read = csv.reader(lines, delimiter=dialect.delimiter, quotechar=quote, quoting=quoting)
        names = [name or f"column_{i}" for i, name in enumerate(next(read), start=1)]
    except UnicodeDecodeError as error:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(
                f"The header of {name} begins as UTF-16 does: expected UTF-8, or an encoding of "
                "one byte a character; convert the file, for instance by iconv -f UTF-16 -t UTF-8."
            ) from None
        raise UserError(
            f"The header of {name} cannot be read: {error}; set [source] encoding, for instance "
            '"latin-1", or fix it.'
        ) from None
    except csv.Error as error:
        raise UserError(f"The header of {name} cannot be read: {error}; fix it.") from None
    twice = [c for i, c in enumerate(names) if c in names[:i]]
    if twice:
        raise UserError(f"{name} has column '{twice[0]}' twice in its header: rename one of them.")
    return names


class Headers(dict[str, list[str]]):
    """Partition -> its header, for existing files; for another one, the union of all.

    Raises (a look-up): UserError for a missing file if the others differ.
    """

    def __missing__(self, partition: str) -> list[str]:
        headers = {tuple(header) for header in self.values() if header}
        if len(headers) > 1:
            raise UserError(
                f"A dead letter comes from '{partition}', which [source] path no longer finds, and "
                "its files have their columns in different orders: put it back, or move the letter "
                "away."
            )
        return list(*headers)


def _must_differ(roles: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises: UserError if one character has two of these roles."""
    for first, other in combinations(names, 2):
        if roles.get(first) and roles.get(first) == roles.get(other):
            raise UserError(
                f"{where} {first} and {other} are both {toml_value(roles[first])}: expected "
                f"different characters; set [source] {first} or {other} to another."
            )


__all__ = ["CsvDialects", "Headers", "header"]
