"""Reads the splits of a source one after the other, epoch by epoch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

from connectors.files.catalog import Catalog
from connectors.files.fingerprint import (
    CopyDetector,
    Fingerprint,
    FingerprintTracker,
    combined_digest,
    plan_resume,
)
from connectors.files.readers.text import TextFile
from connectors.files.splits import (
    EPOCH_STRIDE,
    InputSplit,
    Readable,
    SplitReader,
    line_start,
    order,
)
from connectors.files.streams.row_stream import RowStream
from engine.types import EndOfStream, Records, Snapshot, UserError

log = logging.getLogger("headrace.files")

STILL_WRITTEN = 60.0
"""Seconds after its last change in which a file may still be written."""
OpenSplit = Callable[[InputSplit, int], Readable]
"""Opens the file or files of a split as rows, in the order of an epoch."""


class SplitStream(RowStream):
    """The rows of this engine's splits. A partition is a file, or a piece of one."""

    def __init__(self, catalog: Catalog, opened: OpenSplit) -> None:
        """Raises: UserError if the files cannot be shared or shuffled."""
        super().__init__()
        self._catalog = catalog
        self._opened = opened
        self._splits = catalog.splits()
        self._positions: Mapping[str, int] = {}
        self._moved: dict[str, int] = {}
        """The positions to resume partitions at, instead of the mark's."""
        self._totals: dict[str, int] = {}
        self._watched: dict[str, FingerprintTracker] = {}
        self._contents = CopyDetector()
        self._epoch = self._at = 0
        self._yielded = False
        self._order = order(len(self._splits), catalog.settings, 0)
        self._file: Readable | None = None

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Raises: EndOfStream after the last epoch."""
        while self._epoch < self._catalog.settings.epochs:
            if self._at == len(self._splits):
                self._epoch, self._at = self._epoch + 1, 0
                self._order = order(len(self._splits), self._catalog.settings, self._epoch)
                continue
            split = self._splits[self._order[self._at]]
            epoch, position = divmod(self._positions.get(split.name, 0), EPOCH_STRIDE)
            if epoch <= self._epoch:
                if self._file is None:
                    self._file = self._open(split)
                    self._file.skip_to(position if epoch == self._epoch else 0)
                records = self._file.read(max_rows, max_bytes)
                self._totals[split.name] = self._file.total
                if records is not None:
                    self._yielded = True
                    return self._with_epoch(split, records)
                self._tell_unfinished(split)
                self.close()
                if not self._yielded and not position:
                    del self._totals[split.name]  # no row, so it is on no mark
            self._at, self._yielded = self._at + 1, False
        raise EndOfStream

    def seek(self, positions: Mapping[str, int]) -> None:
        self.close()
        self._positions = {**positions, **self._moved}
        self._epoch, self._at, self._yielded = 0, 0, False
        self._order = order(len(self._splits), self._catalog.settings, 0)

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Raises: UserError if rows were lost, or would be read twice."""
        super().match_identities(identities)
        policy = self._catalog.settings.on_replaced or "fail"
        plan = plan_resume(self._catalog.files, self.known, policy)
        self._catalog.files, self.known, self._moved = plan.files, plan.known, plan.moved
        self._splits = self._catalog.splits()

    def identities(self, positions: Mapping[str, int]) -> dict[str, Snapshot]:
        """Return file -> its `Fingerprint`."""
        identities = super().identities(positions)
        for split in self._splits:
            position, watched = positions.get(split.name), self._watched.get(split.name)
            if position is not None and watched is not None:
                identities[split.file] = self._seen(split, position, watched).snapshot()
        return identities

    def lag(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return the rest of the files opened so far, in all epochs to come."""
        behind = {}
        for name, total in list(self._totals.items()):
            epoch, position = divmod(positions.get(name, 0), EPOCH_STRIDE)
            again = self._catalog.settings.epochs - 1 - epoch
            behind[name] = max(0, total - position) + again * total
        return behind

    def progress(self, positions: Mapping[str, int]) -> float | None:
        """Return the share of all bytes before the mark; inside a compressed file an estimate."""
        known = [split for split in self._splits if split.name in positions]
        if not known:
            return 0.0
        settings = self._catalog.settings
        epoch: int = max(positions[split.name] // EPOCH_STRIDE for split in known)
        places = order(len(self._splits), settings, epoch).tolist()
        sizes = [self._splits[at].size for at in places]
        last, within = 0, 0.0
        for i, at in enumerate(places):
            split = self._splits[at]
            mark_epoch, position = divmod(positions.get(split.name, 0), EPOCH_STRIDE)
            if split.name in positions and mark_epoch == epoch:
                first, total = split.start, self._totals.get(split.name, 0)
                last, within = i, (position - first) / max(1, total - first) if total else 0.0
        done = (sum(sizes[:last]) + sizes[last] * min(1.0, max(0.0, within))) / max(1, sum(sizes))
        return float(epoch + done) / settings.epochs

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, split: InputSplit) -> Readable:
        catalog = self._catalog
        path = catalog.files[split.file]
        catalog.note_folders(split.name, path)
        if split.name not in self._watched:
            known, whole = self.known.get(split.file), not catalog.has_lines
            self._watched[split.name] = FingerprintTracker(path, whole=whole, before=known)
            self._contents.note(path, split.file)
        file = self._opened(split, self._epoch)
        if split.stop is None:
            return file
        of_table = catalog.spec.layout == "table"
        first = split.start if of_table else line_start(path, split.start)
        return SplitReader(file, split.name, first, split.stop)

    def _with_epoch(self, split: InputSplit, records: Records) -> Records:
        """Return the records with the positions of this epoch."""
        epoch_offset = self._epoch * EPOCH_STRIDE
        if epoch_offset:
            records = replace(records, next=records.next + epoch_offset, epoch_offset=epoch_offset)
        watched = self._watched.get(split.name)
        if watched is not None:
            file = self._file
            watched.record(records, unfinished=isinstance(file, TextFile) and file.unfinished)
        return records

    def _seen(self, split: InputSplit, position: int, watched: FingerprintTracker) -> Fingerprint:
        """Return the fingerprint of a split's file for a mark."""
        if split.stop:
            return watched.fingerprint
        return watched.at(position, self._totals.get(split.name), EPOCH_STRIDE)

    def _tell_unfinished(self, split: InputSplit) -> None:
        """Tell of a last line without a line end, where it waits, or may still be written."""
        file = self._file
        if not isinstance(file, TextFile):
            return
        if file.waiting:
            log.warning(
                "%s ends in a line without a line end, at position %d: it is not read until it has "
                "one (last_line).",
                split.name,
                file.next,
            )
        elif file.unfinished and self._yielded:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            if age < STILL_WRITTEN:
                log.warning(
                    "%s was written to %d s ago and ends in a line without a line end: it is read "
                    'as it stands; [source] last_line = "wait" leaves such a line until it has '
                    "one.",
                    split.name,
                    age,
                )


class JoinedStream(SplitStream):
    """All files as one partition: files sorted together, or files that are one row each. If the
    order depends on all files, their identity is a digest of all."""

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Raises: UserError if sorted files are not those of the checkpoint."""
        for name, known in identities.items():
            self._catalog.name = name
            if known != self._digest:
                raise UserError(
                    "[source] order_by puts the rows of all files in one order, and the files "
                    "are not those of the run before: expected no change; start over with "
                    "--fresh, or leave order_by out."
                )
        self._splits = self._catalog.splits()

    def identities(self, positions: Mapping[str, int]) -> dict[str, Snapshot]:
        return {self._catalog.name: self._digest}

    @cached_property
    def _digest(self) -> str:
        if not self._catalog.settings.order_by:
            return ""
        return combined_digest(self._catalog.files.values())

    def _open(self, split: InputSplit) -> Readable:
        for name, path in self._catalog.files.items() if self._catalog.settings.order_by else ():
            self._contents.note(path, name)
        return self._opened(split, self._epoch)


__all__ = ["JoinedStream", "SplitStream"]
