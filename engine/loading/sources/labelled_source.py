"""Reads rows, and the labels that come later from a source of their own, in the order of their
times.

Before a step, of `[labels] every_rows` rows, come all labels that are older than its first row, and
before each row those older than the span of time it is in. So a model that learns while it reads
knows no label before it came, and no row expires because its label was read late. Whose turn it is
depends on the number of rows given and on these times alone, so a restart goes on in the same
order. A topic that may be behind is waited for while it has records, and else a moment; after that
the other one goes on without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from engine.columnar.event_time import NEVER, Clock, without_future
from engine.config import LabelSettings
from engine.loading.sources.label_times import (
    LabelTimes,
    require_time_of_labels,
    require_time_of_rows,
)
from engine.loading.sources.mix import SEPARATOR, Member, SourceGroup
from engine.types import (
    DROPPED,
    POSITION,
    WILDCARD,
    EndOfStream,
    Mark,
    Records,
    Schema,
    SharedSource,
    Snapshot,
    Source,
    parse_schema,
    require,
    type_name,
)
from engine.types.arrays import Bools, Ints
from engine.user_code import calls
from engine.user_code.calls import naming

ROWS, LABELS = "rows", "labels"
"""How the partitions of the two begin."""
SECTION = "labels.source"
"""The table of the source of labels."""
QUIET_READS = 10
"""The reads without a record after which a source that knows of no more has nothing for now."""
LABELS_FIRST = LABELS + SEPARATOR


def is_of_labels(records: Records) -> bool:
    """Return whether these are records of labels."""
    return records.partition.startswith(LABELS_FIRST)


class LabelledSource(SourceGroup):
    """Rows of one source and labels of another. Partitions are named ``rows:`` and ``labels:`` and
    their own name.

    Args:
        rows: the source of the rows.
        labels: the source of their labels.
        target: the column of the labels that the model predicts.
        declared: [labels.source.schema], as it is in the file.

    Attributes:
        target: as given.
    """

    def __init__(
        self,
        rows: Source,
        labels: Source,
        settings: LabelSettings,
        *,
        target: str,
        declared: Mapping[str, Any],
    ) -> None:
        self.settings: LabelSettings = settings
        self._rows = Member(ROWS, rows, "source")
        self._labels = Member(LABELS, labels, SECTION)
        super().__init__([self._rows, self._labels])
        self.target = target
        self._declared = declared
        self._saved: Mapping[str, str] = {}
        self._ahead: dict[str, Records] = {}
        """Name of a source -> its records that were read and not given yet."""
        self._ahead_times: dict[str, Ints] = {}
        """Name of a source -> the times of these."""
        self._clocks = dict.fromkeys((ROWS, LABELS), Clock())
        """Name of a source -> the clock of what was given."""
        self._empty_reads = dict.fromkeys((ROWS, LABELS), 0)
        self._times: LabelTimes | None = None

    # ------------------------------------------------------------------------------------- columns

    @property
    def labels(self) -> Source:
        """The source of labels."""
        return self._labels.source

    @cached_property
    def label_schema(self) -> Schema:
        """The columns of a label: its key, its time, and the label.

        Raises: UserError if one is missing.
        """
        declared = parse_schema(self._declared)
        if self._saved:
            declared = {**parse_schema(self._saved), WILDCARD: DROPPED}
        with naming(SECTION):
            columns = calls.schema(self.labels, declared, SECTION)
        settings = self.settings
        require(columns, settings.key_columns.values(), where="[labels] by, in [labels.source],")
        require_time_of_labels(settings, columns)
        require(columns, [self.target], where="[model] target, in [labels.source],")
        needed = (*settings.key_columns.values(), settings.time_of_labels, self.target)
        return {column: columns[column] for column in needed}

    def schema(self, declared: Schema) -> Schema:
        """Return the columns of the rows.

        Raises: UserError if rows or labels have no usable time.
        """
        columns = calls.schema(self._rows.source, declared)
        require_time_of_rows(self.settings, columns)
        self._times = LabelTimes.of(self.settings, columns, self.label_schema)
        return columns

    def schema_state(self) -> Mapping[str, Snapshot]:
        """Return the state of both sources, and the columns of the labels."""
        columns = {column: type_name(dtype) for column, dtype in self.label_schema.items()}
        saved = {"declared": dict(self._declared), "columns": columns}
        return {**super().schema_state(), "label_schema": saved}

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        super().restore_schema_state(schema_state)
        saved = schema_state.get("label_schema", {})
        self._saved = saved["columns"] if saved.get("declared") == dict(self._declared) else {}
        vars(self).pop("label_schema", None)

    def parse_settings(self) -> Mapping[str, Any]:
        """Return the settings of the source of rows: a model file reads no labels."""
        return self._rows.source.parse_settings()

    # ------------------------------------------------------------------------------------- reading

    def sample(self, rows: int, timeout: float) -> Sequence[Records]:
        """Return about half as many rows, and half as many labels."""
        half = -(-rows // 2)
        sampled = []
        for member in self._parts:
            with naming(member.section):
                sampled += [
                    member.give(records) for records in calls.sample(member.source, half, timeout)
                ]
        return sampled

    def seek(self, mark: Mark) -> None:
        self._ahead.clear()
        self._ahead_times.clear()
        self._clocks = dict.fromkeys(self._clocks, Clock())
        self._empty_reads = dict.fromkeys(self._empty_reads, 0)
        super().seek(mark)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        for member in self._parts:
            self._look_ahead(member, max_rows, max_bytes, 0.0)
        for member in self._parts:
            if member.name in self._ahead and not len(self._ahead[member.name]):
                return self._give(member, 0)  # a gap: only its position counts
        absent = [m for m in self._parts if not m.ended and m.name not in self._ahead]
        if absent and not (self._ahead and self._free(absent[0])):
            if not self._look_ahead(absent[0], max_rows, max_bytes, timeout):
                self._empty_reads[absent[0].name] += 1
                return None
        elif not self._ahead:
            raise EndOfStream
        member, n = self._turn()
        return self._give(member, min(n, max_rows))

    def progress(self, mark: Mark) -> float | None:
        """Return the mean progress of the two."""
        shares = [member.source.progress(member.own(mark)) for member in self._parts]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if len(known) == len(shares) else None

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(records.nbytes for records in list(self._ahead.values()))

    # -------------------------------------------------------------------------------------- inside

    def _look_ahead(self, member: Member, max_rows: int, max_bytes: int, timeout: float) -> bool:
        """Read the next records of a source, unless some are waiting; return whether any are."""
        if member.name in self._ahead:
            return True
        records = member.read(max_rows, max_bytes, timeout)
        if records is None:
            return False
        self._ahead[member.name] = records
        self._ahead_times[member.name] = self._times_in(member, records)
        self._empty_reads[member.name] = 0
        return True

    def _free(self, absent: Member) -> int:
        """Return how many of the waiting records need not wait for a source that has nothing now:
        it has none as old as they are, or no more for now."""
        assert self._times is not None, "schema comes first"
        (times,) = self._ahead_times.values()
        is_quiet = self._empty_reads[absent.name] >= QUIET_READS and not _has_more(absent)
        if absent.ended or is_quiet:
            return len(times)
        return _leading(times <= self._clocks[absent.name].time + self._times.lateness)

    def _turn(self) -> tuple[Member, int]:
        """Return whose records come next, and how many."""
        for alone, other in ((self._rows, self._labels), (self._labels, self._rows)):
            if other.name not in self._ahead:
                return alone, self._free(other)
        rows, labels = self._ahead_times[ROWS], self._ahead_times[LABELS]
        done = self._rows.given % self.settings.every_rows
        step = rows[: self.settings.every_rows - done]
        known = step[step > NEVER][:1]
        older = _leading(labels < (self._span(known) if done else known)) if len(known) else 0
        if older:
            return self._labels, older
        return self._rows, max(1, _leading(self._span(step) <= labels[0]))

    def _give(self, member: Member, n: int) -> Records:
        """Return the first of the waiting records."""
        name, records = member.name, self._ahead.pop(member.name)
        times = self._ahead_times.pop(name)
        assert self._times is not None, "schema comes first"
        clock = self._clocks[name]
        self._clocks[name], *_ = clock.walk(times[:n], self._times.kept, at_once=True)
        if n < len(records):
            self._ahead[name], self._ahead_times[name] = records.slice(n, len(records)), times[n:]
            records = records.slice(0, n)
        return member.give(records)

    def _span(self, times: Ints) -> Ints:
        """Return when the span of time begins that each time is in, shape (n,)."""
        assert self._times is not None, "schema comes first"
        return times // self._times.span * self._times.span

    def _times_in(self, member: Member, records: Records) -> Ints:
        """Return the time of each record, shape (n,); NEVER where it has none or one far in the
        future, before which all records of the other source would be read, or where nothing can
        come before it, as that has ended."""
        times = np.full(len(records), NEVER)
        (other,) = (m for m in self._parts if m is not member)
        if not len(records) or (other.ended and other.name not in self._ahead):
            return times
        assert self._times is not None, "schema comes first"
        of_rows = member is self._rows
        column = self._times.rows if of_rows else self._times.labels
        schema = {column.column: column.dtype}
        with naming(member.section):
            frame, _ = calls.decode(member.source.format, records, schema, member.section)
        at = np.searchsorted(records.positions, frame.get_column(POSITION).to_numpy())
        times[at] = self._times.of_rows(frame) if of_rows else self._times.of_labels(frame)
        return without_future(times, self._times.kept)


def _has_more(member: Member) -> bool:
    """Return whether a source knows of records that it has not given, as a topic does whose first
    answer is still to come."""
    source, given = member.source, Mark(positions=member.marked)
    more = source.unread(given) if isinstance(source, SharedSource) else source.lag(given)
    return any(more.values())


def _leading(mask: Bools) -> int:
    """Return how many values are true before the first that is not."""
    return len(mask) if mask.all() else int(mask.argmin())


__all__ = ["LABELS", "ROWS", "SECTION", "LabelledSource", "is_of_labels"]
