"""The table of a `lookup` in a file: read at the start, and again when it is another."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from engine.columnar.hashing import Hashes
from engine.scrub.features.lookup_fit import Fit
from engine.scrub.features.lookup_table import Table, read_table, stamp
from engine.system.file_stamp import FileStamp
from engine.types import Schema, UserError
from engine.types.arrays import Bools, Ints
from engine.types.plural import counted

log = logging.getLogger("headrace.scrub")


class FileTable:
    """A table in a file.

    Args:
        where: the stage, for error sentences.
        reload: seconds after which the file is looked at again; None never does.

    Attributes:
        name: in sentences.
    """

    def __init__(self, path: str, where: str, reload: float | None) -> None:
        self.name = f"'{path}'"
        self._path, self._where, self._reload = Path(path), where, reload
        self._fit: Fit | None = None
        self._file: FileStamp | None = None
        self._table: Table | None = None
        self._looked = 0.0

    @property
    def columns(self) -> pl.DataFrame:
        """The columns that rows get."""
        assert self._table is not None, "a stage is bound before it is applied"
        return self._table.columns

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return 0 if self._table is None else self._table.nbytes

    def bind(self, fit: Fit) -> Schema:
        """Read the file, unless it is read; return the columns that it adds.

        Raises: UserError if it cannot be read or does not fit the stream.
        """
        file = stamp(self._path, self._where)
        if self._table is None or file != self._file or fit != self._fit:
            self._fit, self._file = fit, file
            self._table = self._read(fit)
        self._looked = time.monotonic()
        return dict(self._table.columns.schema)

    def refresh(self) -> Mapping[str, int]:
        """Read the file again if it is another one, and it is time to look; count it."""
        if self._reload is None or time.monotonic() - self._looked < self._reload:
            return {}
        self._looked = time.monotonic()
        assert self._fit is not None
        old, added = self._file, self.columns.schema
        try:
            self._file = stamp(self._path, self._where)
            if self._file == old:
                return {}
            table = self._read(self._fit)
            if table.columns.schema != added:
                raise UserError(f"{self._where} path '{self._path}' has other columns now.")
        except UserError as error:
            log.warning("%s The table stays as it was.", error)
            return {}
        self._table = table
        return {"reloaded": 1}

    def find(self, keys: Hashes, whole: Bools, times: Ints | None) -> tuple[Ints, Ints | None]:
        """Return the row of `columns` for each key, -1 for none, and when it became valid."""
        table = self._table
        assert table is not None, "a stage is bound before it is applied"
        place = table.index.find(keys)
        place[~whole] = -1
        if table.valid is None or times is None:
            return place, None
        place = table.newest(place, times)
        return place, table.valid[np.maximum(place, 0)] if len(table.valid) else None

    @property
    def rows(self) -> int:
        """The rows of the table."""
        return 0 if self._table is None else self._table.columns.height

    def remarks(self) -> Iterator[str]:
        """Yield nothing: what is odd in a file is told when it is read."""
        yield from ()

    def digest(self) -> str | None:
        """Return the digest of the file; None where it may change."""
        if self._reload is not None:
            return None
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _read(self, fit: Fit) -> Table:
        where = f"{self._where} path '{self._path}'"
        rows = fit.rows(read_table(self._path, dict(fit.keys), where), where)
        kept = rows.whole
        if gone := int((~kept).sum()):
            log.warning(
                "%s: %s without a key or time: they match nothing", where, counted(gone, "row")
            )
        valid, known = (None if t is None else t[kept] for t in (rows.valid, rows.known))
        return Table.of(rows.keys.filter(kept), rows.columns.filter(kept), valid, known, where)


__all__ = ["FileTable"]
