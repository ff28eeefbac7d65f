"""Reads the rows of one large XML document: every element at one path."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from lxml import etree

from connectors.files.readers.text import Bytes
from connectors.formats.values.columns import PROBLEM
from connectors.formats.xml import (
    ENTITY,
    REFUSED,
    ROW,
    SAFE,
    XmlFields,
    declares_entities,
    local,
    parser_message,
    refers_to_entities,
)
from engine.types import HeadraceError, Records, UnreadableFile, UserError
from engine.types.plural import counted

BLOCK = 1 << 20
"""The bytes parsed at a time."""
HEAD = 1 << 12
"""The bytes in which the root element usually begins."""


class XmlRows:
    """Reads a document; see `TextFile` for the methods. Positions are row numbers; resuming
    skips the rows before.

    Memory holds the tree of one block and the open elements; complete elements are freed, rows
    or not.

    Args:
        path: the file; compressed ones are decompressed.
        name: the partition.
        row: names of the elements from the root to a row, ``orders/order``; ``*`` is any name.
        columns: column -> path, see `XmlFields`.
        max_record: the longest accepted row, in bytes.

    Raises (all methods): UnreadableFile if reading fails, with file and row;
        UserError for a row that is too long, and for a document with entities of its own.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        row: str,
        columns: Sequence[str],
        paths: Mapping[str, str],
        *,
        max_record: int,
    ) -> None:
        if not ROW.fullmatch(row):
            raise UserError(
                f"[source] row '{row}' is no path: expected the names of the elements from the "
                "root of the document to a row, as in 'orders/order'."
            )
        self.name = name
        self.next = 0
        self._steps = tuple(map(local, row.split("/")))
        self._fields = XmlFields(columns, paths)
        self._max_record = max_record
        self._bytes = Bytes(path, name)
        self._parser: etree.XMLPullParser | None = None
        self._root: etree._Element | None = None
        self._parent: etree._Element | None = None
        """The parent of the last row: other elements in it need no check of their ancestors."""
        self._last: etree._Element | None = None
        self._error: HeadraceError | None = None
        self._ended = False
        self._doctype = False
        self._open = 0
        """The bytes parsed since the last row ended, if another has begun."""
        self._chunk = pl.DataFrame()
        self._ends = np.zeros(1, np.int64)
        """The cumulative bytes of the chunk's first 0, 1, 2, ... rows, shape (rows + 1,)."""
        self._at = 0

    @property
    def total(self) -> int:
        """The last position, estimated before the end."""
        if self._ended:
            return self.next + self._chunk.height - self._at
        share = max(1, self._bytes.offset) / max(1, self._bytes.total)
        return int((self.next + self._chunk.height - self._at) / min(1.0, share))

    def skip_to(self, position: int) -> None:
        """Continue at a row number."""
        while self.next < position:
            ahead = position - self.next - (self._chunk.height - self._at)
            if ahead > 0:
                self.next += self._chunk.height - self._at
                self._next_chunk(skip=ahead)
            else:
                self._at += position - self.next
                self.next = position
            if self._ended and self._at == self._chunk.height and self.next < position:
                raise self._error or UnreadableFile(
                    f"{self.name} has {counted(self.next, 'row')}, fewer than {position:,}, where "
                    "to resume: expected the same file as before."
                )

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next rows; None at the end of the file."""
        while self._at == self._chunk.height:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._next_chunk()
        start = self._at
        fit = int(np.searchsorted(self._ends, self._ends[start] + max_bytes, "right")) - 1
        self._at = max(start + 1, min(start + max_rows, fit))
        before, self.next = self.next, self.next + self._at - start
        return Records(
            partition=self.name,
            positions=np.arange(before, self.next),
            next=self.next,
            values=self._chunk.slice(start, self._at - start),
            arrived=time.monotonic(),
        )

    def sample(self, rows: int) -> list[etree._Element]:
        """Return the first rows, up to the bytes that one may have. Raises: HeadraceError,
        UserError if there is none."""
        elements: list[etree._Element] = []
        while len(elements) < rows and not self._ended and self._bytes.offset <= self._max_record:
            elements += self._rows()
        if not elements:
            raise self._error or self._none_there()
        return elements[:rows]

    def _none_there(self) -> UserError:
        return UserError(
            f"[source] row '{'/'.join(self._steps)}' leads to nothing in the first "
            f"{self._bytes.offset:,} bytes of {self.name}: expected the names of the elements from "
            "the root to a row; or raise [source] max_record_bytes, to look further."
        )

    def close(self) -> None:
        """Release the file."""
        self._bytes.close()
        self._chunk, self._at = pl.DataFrame(), 0
        self._root = None

    def _next_chunk(self, skip: int = 0) -> None:
        """Make columns of the next block's rows, except the first `skip`, which only count."""
        rows = self._rows()
        self.next += min(skip, len(rows))
        rows = rows[skip:]
        frame = self._fields.frame(rows, len(rows))
        sizes = np.full(len(rows), 8 * frame.width, np.int64)
        for column in frame:
            sizes += column.str.len_bytes().fill_null(0).to_numpy().astype(np.int64)
        if self._doctype:
            why = [f"{ENTITY}: {REFUSED}" if refers_to_entities(row) else None for row in rows]
            frame = frame.with_columns(pl.Series(PROBLEM, why, pl.String))
        self._chunk, self._at = frame, 0
        self._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self._prune()

    def _rows(self) -> list[etree._Element]:
        """Parse a block; return the rows that end in it. After the last block, or an error,
        none."""
        if self._ended:
            return []
        block = b""
        try:
            block = self._bytes.read(BLOCK).tobytes()
            if self._parser is None:
                self._parser = self._first(block)
            self._parser.feed(block) if block else self._parser.close()
            self._ended = not block
        except etree.XMLSyntaxError as error:
            self._stop(
                UnreadableFile(
                    f"{self.name} cannot be read on as XML: {parser_message(error)}; the file is "
                    "cut short, damaged or of another format: fix or replace it."
                )
            )
        except HeadraceError as error:
            self._stop(error)
        events = () if self._parser is None else self._parser.read_events()
        rows = [element for _, element in events if self._is_row(element)]
        if rows and self._root is None:
            self._root = rows[0].getroottree().getroot()
        self._last = rows[-1] if rows else self._last
        self._watch(len(block), rows)
        return rows

    def _stop(self, error: HeadraceError) -> None:
        self._error, self._ended = error, True

    def _first(self, block: bytes) -> etree.XMLPullParser:
        """Return a parser that reports rows, if the root is as expected."""
        root = broken = None
        for size in (HEAD, BLOCK):
            probe = etree.XMLPullParser(events=("start",), **SAFE)
            try:
                probe.feed(block[:size])
                probe.close()  # short input is not checked yet; most documents continue here
            except etree.XMLSyntaxError as error:
                broken = error
            root = next((element for _, element in probe.read_events()), None)
            if root is not None:
                break
        if root is None:
            raise broken or UnreadableFile(f"{self.name} has no root element: expected XML.")
        self._doctype = root.getroottree().docinfo.internalDTD is not None
        if self._doctype and declares_entities(root):
            raise UserError(
                f"{self.name} declares entities, which are never expanded: write what they stand "
                "for into the file, and take them out of its document type."
            )
        if self._steps[0] not in ("*", local(str(root.tag))):
            raise UserError(
                f"[source] row '{'/'.join(self._steps)}' begins at '{self._steps[0]}', but the "
                f"root element of {self.name} is '{local(str(root.tag))}'."
            )
        tag = None if self._steps[-1] == "*" else f"{{*}}{self._steps[-1]}"
        return etree.XMLPullParser(events=("end",), tag=tag, **SAFE)

    def _is_row(self, element: etree._Element) -> bool:
        """Return whether an element with the name of rows is at their path."""
        parent = element.getparent()
        if parent is self._parent and parent is not None:
            return True
        above = [] if parent is None else [*reversed([parent, *parent.iterancestors()])]
        if len(above) != len(self._steps) - 1 or not all(map(_same, above, self._steps)):
            return False
        self._parent = parent
        return True

    def _watch(self, size: int, rows: list[etree._Element]) -> None:
        """Stop at a row that exceeds the limit, or if no row comes at all: elements before the
        first row cannot be freed."""
        if self._root is None and self._bytes.offset > self._max_record and not self._ended:
            return self._stop(self._none_there())
        node, depth = self._root, 1
        while node is not None and depth < len(self._steps):
            node, depth = node[-1] if len(node) else None, depth + 1
        inside = node is not None and node is not self._last and not self._ended
        self._open = self._open + size if inside and not rows else 0
        if self._open > self._max_record:
            self._stop(
                UserError(
                    f"A row of {self.name}, at position {self.next + len(rows)} or behind, is "
                    f"longer than {self._max_record} bytes: fix the file, or raise [source] "
                    "max_record_bytes."
                )
            )
        return None

    def _prune(self) -> None:
        """Free what is complete: of all open elements outside a row, keep only the last child,
        after which the parser continues."""
        node, depth, on_way = self._root, 0, True
        while node is not None and not (on_way and depth == len(self._steps) - 1):
            del node[:-1]
            on_way = on_way and _same(node, self._steps[depth])
            node, depth = node[-1] if len(node) else None, depth + 1


def _same(element: etree._Element, step: str) -> bool:
    tag = element.tag
    return step == "*" or tag == step or (isinstance(tag, str) and local(tag) == step)


__all__ = ["XmlRows"]
