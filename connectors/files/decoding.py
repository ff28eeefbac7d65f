"""The formats that decode the content of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import polars as pl

from connectors.files.catalog import Catalog
from connectors.files.csv_dialects import CsvDialects
from connectors.formats.bounded import SizeLimited
from connectors.formats.custom import load_custom
from connectors.formats.file_content import FileContent, UnreadFiles
from connectors.formats.inference.misses import InferredTypes
from connectors.formats.kernels.paths import JsonShape
from connectors.formats.ndjson import Ndjson
from connectors.formats.options import FormatOptions
from connectors.formats.registry import CUSTOM, FILES, require_option
from connectors.formats.values.columns import Columns
from connectors.formats.values.hive import HivePartitions
from engine.types import (
    PARTITION,
    POSITION,
    RESERVED,
    Format,
    Records,
    Rejects,
    Schema,
    UserError,
)


class Decoding:
    """The format of a source's files, and the formats that wrap it.

    Attributes:
        inner: decodes the content of a file.
        inferred: the same, and counts rows rejected because of inferred types.
        format: the format of the source: also adds the columns of folders.
    """

    inner: Format
    inferred: InferredTypes
    format: Format

    def __init__(self, catalog: Catalog, dialects: CsvDialects) -> None:
        self._catalog = catalog
        self._dialects = dialects
        self.make()

    def make(self) -> None:
        """Rebuild the formats from the settings. Raises: UserError if these do not fit."""
        catalog = self._catalog
        self.inner = self._inner()
        self.inferred = InferredTypes(self.inner, self._decimal)
        counted = self.inferred if catalog.has_lines and catalog.spec.guessed else self.inner
        self.format = counted
        if catalog.settings.follow:  # where a damaged file is a dead letter
            self.format = UnreadFiles(self.format)
        if any(catalog.folders.values()) and not catalog.is_single_partition:
            self.format = self.beside_folders(self.format)

    def beside_folders(self, format: Format) -> HivePartitions:
        """Return a format that adds the columns of folders."""
        return HivePartitions(format, self._catalog.folders)

    def _decimal(self) -> str:
        """Return the decimal point of a CSV's numbers, which is found after the format is made."""
        return self._dialects.dialect.decimal

    def _inner(self) -> Format:
        catalog, settings, spec = self._catalog, self._catalog.settings, self._catalog.spec
        if settings.row is not None:
            require_option("row", catalog.format, FILES)
        if settings.paths:
            require_option("paths", catalog.format, FILES)
            if settings.order_by:
                raise UserError(
                    "[source] order_by sorts rows as they are, without paths: take one of the two "
                    "out."
                )
        if settings.order_by:
            decimal = self._decimal if catalog.format == "csv" else None
            return Columns(coerce=settings.coerce, lenient=True, decimal=decimal)
        if settings.row is not None:  # elements come as columns of text
            return Columns()
        if spec is CUSTOM:
            return load_custom(catalog.format)
        if catalog.format == "csv":  # whose dialect is found later
            return self._dialects.decoder()
        format = spec.format(
            FormatOptions(paths=settings.paths, coerce=settings.coerce, lines=True, lenient=True)
        )
        if spec.plain_lines:
            return SizeLimited(format, settings.max_record_bytes)
        if spec.layout == "file" and not isinstance(format, FileContent):
            return FileContent(catalog.format, format)
        return format


class TableRows(Format):
    """Decodes rows of tables that were written as JSON.

    A table may give a nested column as it is and values from inside it; one walk over JSON gives
    one of the two, so each takes a walk of its own.

    Args:
        paths: column -> where its value is in a nested column.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Return each row once: it is rejected where a walk rejects it."""
        (whole, rejects), *others = (
            Ndjson(self._within(part)).decode(records, part) for part in self._walks(schema)
        )
        for frame, more in others:
            gone = pl.concat(
                [pl.Series(POSITION, [], pl.Int64), *(r.rows[POSITION] for r in rejects)]
            )
            new = ((r, r.rows.filter(~pl.col(POSITION).is_in(gone.implode()))) for r in more)
            rejects = [*rejects, *(replace(r, rows=rows) for r, rows in new if rows.height)]
            whole = whole.join(frame.drop(PARTITION), on=POSITION, maintain_order="left")
        return whole.select(*RESERVED, *schema), rejects

    def _walks(self, schema: Schema) -> Iterator[Schema]:
        """Split the columns into those that one walk gives together."""
        walks: list[Schema] = [{c: t for c, t in schema.items() if c not in self._paths}]
        for column in self._within(schema):
            for i, walk in enumerate(walks):
                wider = {**walk, column: schema[column]}
                if self._go_together(wider):
                    walks[i] = wider
                    break
            else:
                walks.append({column: schema[column]})
        return iter(walks)

    def _go_together(self, columns: Schema) -> bool:
        try:
            JsonShape.of(columns, self._within(columns))
        except UserError:
            return False
        return True

    def _within(self, columns: Schema) -> dict[str, str]:
        return {c: self._paths[c] for c in columns if c in self._paths}


__all__ = ["Decoding", "TableRows"]
