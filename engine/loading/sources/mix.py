"""Mixes several sources into one, their rows by weight.

Whose turn it is depends on how many rows of each were given, and on nothing else: the one whose
rows divided by its weight are fewest (stride scheduling; Waldspurger & Weihl, 1995). Those numbers
are on the mark, so a restart goes on with the same rows in the same order; a source that has
nothing for now (a topic) lets the others go on, and their order then depends on when its rows came.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import polars as pl
from pydantic import Field

from engine import types
from engine.config import validate
from engine.types import (
    DROPPED,
    PARTITION,
    WILDCARD,
    Buffered,
    EndOfStream,
    Format,
    HeadraceError,
    Mark,
    Records,
    Rejects,
    Schema,
    SharedSource,
    Sink,
    Snapshot,
    Source,
    UserError,
)
from engine.types.changes import Free
from engine.user_code import calls
from engine.user_code.calls import naming

SEPARATOR = ":"
V = TypeVar("V")
SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(slots=True)
class Member:
    """One of the sources of a group.

    Attributes:
        name: before the colon of its partitions' names.
        section: its table, for error sentences.
        given: rows of it that were given, over all restarts.
        ended: it has no more.
        marked: partition -> its next position.
    """

    name: str
    source: Source
    section: str
    given: int = 0
    ended: bool = False
    marked: dict[str, int] = field(default_factory=dict)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Return the next records; None if there are none now, or no more at all: see `ended`."""
        if self.ended:
            return None
        try:
            with naming(self.section):
                return calls.read(
                    self.source, max_rows, max_bytes, timeout, self.section, marked=self.marked
                )
        except EndOfStream:
            self.ended = True
            return None

    def give(self, records: Records) -> Records:
        """Return its records as those of the group, and count them."""
        before = self.given
        self.given += len(records)
        self.marked |= records.end_positions
        partition = self.counter + records.partition
        return replace(records, partition=partition, counter=self.counter, counted=before)

    def seek(self, mark: Mark) -> None:
        """Go to its part of the mark."""
        own = self.own(mark)
        with naming(self.section):
            self.source.seek(own)
        self.given, self.ended = mark.positions.get(self.counter, 0), False
        self.marked = dict(own.positions)

    @property
    def counter(self) -> str:
        """The key of its row count on a mark."""
        return self.name + SEPARATOR

    def own(self, mark: Mark) -> Mark:
        """Return the part of the mark that belongs to this source."""
        return Mark(positions=_within(mark.positions, self.counter))


@dataclass(slots=True)
class WeightedSource(Member):
    """One of the mixed sources."""

    weight: float = 1.0


def _within(names: Mapping[str, V], prefix: str) -> dict[str, V]:
    """Return the entries whose names begin with the prefix, without it."""
    start = len(prefix)
    return {n[start:]: value for n, value in names.items() if n.startswith(prefix) and n != prefix}


class SourceGroup(SharedSource, Buffered):
    """Several sources that answer as one: each member of the contract, for all of them. Whose rows
    come next is left to the class that inherits.

    Args:
        parts: the sources.
    """

    def __init__(self, parts: Sequence[Member]) -> None:
        self._parts = parts
        self.format: Format = self._joint_format()

    @property
    def parts(self) -> dict[str, Source]:
        """Prefix of the partitions -> source."""
        return {member.counter: member.source for member in self._parts}

    @property
    def epochs(self) -> int:
        """How often rows are read at most."""
        return max(member.source.epochs for member in self._parts)

    def keep_metadata(self) -> None:
        for member in self._parts:
            member.source.keep_metadata()

    def unbounded(self) -> bool:
        """Return whether one of the sources is unbounded."""
        return any(member.source.unbounded() for member in self._parts)

    def can_be_reread(self) -> bool:
        """Return whether all can be reread."""
        return all(member.source.can_be_reread() for member in self._parts)

    def schema_state(self) -> Mapping[str, Snapshot]:
        """Return name of each source -> its state."""
        return {member.name: dict(member.source.schema_state()) for member in self._parts}

    def found(self) -> str:
        """Return each source's, with its name."""
        found = {member.name: member.source.found() for member in self._parts}
        return "; ".join(f"source '{name}': {text}" for name, text in found.items() if text)

    def remarks(self) -> list[str]:
        """Return each source's remarks, with its name."""
        remarks = [
            (member.name, remark) for member in self._parts for remark in member.source.remarks()
        ]
        return [f"source '{name}': {remark}" for name, remark in remarks]

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return name of each source -> its values."""
        return {member.name: dict(member.source.in_effect()) for member in self._parts}

    def reads_output_of(self, sink: Sink) -> str | None:
        overlaps = (member.source.reads_output_of(sink) for member in self._parts)
        return next((place for place in overlaps if place is not None), None)

    def reads_file(self, file: Path) -> bool:
        return any(member.source.reads_file(file) for member in self._parts)

    def origin_columns(self) -> set[str]:
        """Return the columns that any of the sources names."""
        return {column for member in self._parts for column in member.source.origin_columns()}

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        """Restore each source's own state."""
        for member in self._parts:
            own = schema_state.get(member.name)
            with naming(member.section):
                member.source.restore_schema_state(own if isinstance(own, Mapping) else {})

    def parse_settings(self) -> Mapping[str, Any]:
        """Return the settings that all sources have in common."""
        first, *rest = [member.source.parse_settings() for member in self._parts]
        return {k: v for k, v in first.items() if all(k in own and own[k] == v for own in rest)}

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        for member in self._parts:
            member.source.use_parse_settings(parse_settings)
        self.format = self._joint_format()

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        return {
            member.counter + partition: identity
            for member in self._parts
            for partition, identity in member.source.identities(member.own(mark)).items()
        }

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        """Return each source's part."""
        for member in self._parts:
            with naming(member.section):
                member.source.match_identities(_within(identities, member.counter))

    def commit(self, mark: Mark) -> bool:
        """Pass each source its part."""
        done = [member.source.commit(member.own(mark)) for member in self._parts]
        return all(done)

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {
            member.counter + partition: n
            for member in self._parts
            for partition, n in member.source.lag(member.own(mark)).items()
        }

    def lag_unit(self, partition: str) -> str:
        for member in self._parts:
            if partition.startswith(member.counter):
                return member.source.lag_unit(partition.removeprefix(member.counter))
        return super().lag_unit(partition)

    def seek(self, mark: Mark) -> None:
        for member in self._parts:
            member.seek(mark)

    def close(self) -> None:
        for member in self._parts:
            calls.close(member.source, member.section)

    @property
    def nbytes(self) -> int:
        return sum(p.source.nbytes for p in self._parts if isinstance(p.source, Buffered))

    def limit_memory(self, nbytes: int) -> None:
        """Give each buffer an equal share."""
        buffered = [p.source for p in self._parts if isinstance(p.source, Buffered)]
        for source in buffered:
            source.limit_memory(nbytes // len(buffered))

    # ---------------------------------------------------------------------- partitions that come

    shares_partitions = tracks_owners = partitions_lost = is_revoking = False
    """Whether partitions are shared: never, in a group."""

    def is_rebalancing(self) -> bool:
        return any(source.is_rebalancing() for _, source in self._shared)

    def unavailable_reason(self) -> str | None:
        """Return the first source's reason."""
        for member, source in self._shared:
            if (why := source.unavailable_reason()) is not None:
                return f"source '{member.name}': {why}"
        return None

    def release_partitions(self) -> None:
        for _, source in self._shared:
            source.release_partitions()

    def resume_after_rebalance(self, mark: Mark) -> Mark:
        positions = dict(mark.positions)
        for member, source in self._shared:
            resumed = source.resume_after_rebalance(member.own(mark)).positions
            positions |= {member.counter + name: at for name, at in resumed.items()}
        return Mark(positions=positions, stages=mark.stages)

    def reset_offsets(self) -> None:
        for _, source in self._shared:
            source.reset_offsets()

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        shared = self._shared
        agreements = [
            source.was_committed(_within(positions, member.counter)) for member, source in shared
        ]
        return False if False in agreements else None if None in agreements else True

    def counts(self) -> Mapping[str, int]:
        sums: Counter[str] = Counter()
        for _, source in self._shared:
            sums.update(source.counts())
        return sums

    def keep_alive(self) -> None:
        for _, source in self._shared:
            source.keep_alive()

    def _joint_format(self) -> MixFormat:
        return MixFormat(self._parts)

    @property
    def _shared(self) -> list[tuple[Member, SharedSource]]:
        return [(p, p.source) for p in self._parts if isinstance(p.source, SharedSource)]


class Mix(SourceGroup):
    """Mixes sources; some of them may be topics. Partitions are named ``source:partition``.

    Args:
        sources: name -> source and weight; all give the same columns.

    Raises: UserError for weights that give nobody a row, and for a name that is none.
    """

    class Settings(types.Settings):
        """``[source] kind = "mix"``; the sources are ``[source.sources.NAME]``, each a complete
        ``[source]`` with a ``weight``.

        Attributes:
            rows_per_turn [rows]: rows that one source gives before another does.
            stop: "all" goes on with the others where a source ends; "first" ends with it.
        """

        rows_per_turn: Free[int] = Field(256, ge=1)
        stop: Free[Literal["all", "first"]] = "all"

    def __init__(self, settings: Mix.Settings, sources: Mapping[str, tuple[Source, float]]) -> None:
        self.settings: Mix.Settings = settings
        for name, (_, weight) in sources.items():
            if not SOURCE_NAME.fullmatch(name):
                raise UserError(
                    f"[source.sources] expects names of letters, digits, - and _, got '{name}'."
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(
                    f"[source.sources.{name}] weight expects a number of 0 or more, got {weight:g}."
                )
        parts = [
            WeightedSource(name, source, f"source.sources.{name}", weight=weight)
            for name, (source, weight) in sources.items()
            if weight > 0
        ]
        if not parts:
            raise UserError(
                "[source.sources] weights are all 0: give at least one source a positive weight."
            )
        super().__init__(parts)
        self._weighted = parts
        self._turn: WeightedSource | None = None
        self._left = 0

    def schema(self, declared: Schema) -> Schema:
        """Return the declared columns, and others may differ; without declarations, the first
        source's columns.

        Raises: UserError where a source has other columns.
        """
        first, *rest = self._parts
        asked = {WILDCARD: DROPPED, **declared} if declared else {}
        schema = calls.schema(first.source, asked, first.section)
        expected = schema if not declared or WILDCARD in declared else declared
        for member in rest:
            added = set(member.source.origin_columns()) - declared.keys()
            shared = {column: dtype for column, dtype in expected.items() if column not in added}
            own = calls.schema(member.source, {WILDCARD: DROPPED, **shared}, member.section)
            if own != schema:
                odd = next(c for c in {**schema, **own} if schema.get(c) != own.get(c))
                raise UserError(
                    f"[source.sources.{member.name}] has other columns than '{first.name}', first "
                    f"of "
                    f"them '{odd}': declare those that both have in [source.schema]."
                )
        return schema

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        waiting: set[str] = set()
        while True:
            member = self._next(waiting)
            if member is None:
                return None
            wait = timeout if len(waiting) + 1 == len(self._alive) else 0.0
            records = member.read(min(max_rows, self._left), max_bytes, wait)
            if records is not None:
                self._left -= len(records)
                return member.give(records)
            self._turn = None
            if not member.ended:
                waiting.add(member.name)
            elif self.settings.stop == "first":
                raise EndOfStream

    def seek(self, mark: Mark) -> None:
        self._turn, self._left = None, 0
        super().seek(mark)

    def progress(self, mark: Mark) -> float | None:
        """Return the mean progress of the sources; with ``stop = "first"`` that of the most
        advanced one."""
        fractions = [member.source.progress(member.own(mark)) for member in self._parts]
        known = [share for share in fractions if share is not None]
        if self.settings.stop == "first":
            return max(known, default=None)
        return sum(known) / len(known) if len(known) == len(fractions) else None

    # -------------------------------------------------------------------------------------- inside

    @property
    def _alive(self) -> list[WeightedSource]:
        return [member for member in self._weighted if not member.ended]

    def _next(self, waiting: set[str]) -> WeightedSource | None:
        """Return the source whose turn it is; None if none has rows now. Raises: EndOfStream."""
        if self._turn is not None and self._left > 0:
            return self._turn
        alive = self._alive
        if not alive:
            raise EndOfStream
        ready = [member for member in alive if member.name not in waiting]
        if not ready:
            return None
        rows_per_turn = self.settings.rows_per_turn
        begun = [member for member in ready if member.given % rows_per_turn]
        self._turn = begun[0] if begun else min(ready, key=lambda p: p.given / p.weight)
        self._left = rows_per_turn - self._turn.given % rows_per_turn
        return self._turn


class MixFormat(Format):
    """Decodes the records of each source by its own format."""

    def __init__(self, parts: Sequence[Member]) -> None:
        self._formats = {member.name: member.source.format for member in parts}
        self._sections = {member.name: member.section for member in parts}

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        name, _, partition = records.partition.partition(SEPARATOR)
        own = replace(records, partition=partition)
        try:
            with naming(self._sections[name]):
                frame, rejects = calls.decode(
                    self._formats[name], own, schema, self._sections[name]
                )
        except HeadraceError as error:
            raise type(error)(f"Source '{name}': {error}") from error
        place = pl.lit(records.partition).alias(PARTITION)
        rejects = [replace(r, rows=r.rows.with_columns(place)) for r in rejects]
        return frame.with_columns(place), rejects

    def interrupt(self) -> None:
        for member in self._formats.values():
            member.interrupt()

    def resume(self) -> None:
        for member in self._formats.values():
            member.resume()


class MixTable(types.Settings):
    """Keys of ``[source] kind = "mix"`` besides its settings.

    Attributes:
        sources: name -> a source with a weight: ``[source.sources.NAME]``.
    """

    sources: dict[str, dict[str, Any]] = Field(min_length=1)


class WeightedSourceTable(types.Settings):
    """``[source.sources.NAME]``; its other keys are those of a ``[source]``.

    Attributes:
        weight: how many of the mix's rows are this one's, beside the weights of the others.
    """

    weight: float = Field(1.0, ge=0)


def sources_of(
    table: Mapping[str, Any], where: str = "the pipeline"
) -> dict[str, tuple[dict[str, Any], float]]:
    """Return name -> ``[source]`` table and weight, from a mix's table.

    Raises: UserError where there is none, or a weight is no number of 0 or more.
    """
    given = table.get("sources")
    if not isinstance(given, Mapping) or not given:
        raise UserError("[source] kind 'mix' expects its sources as tables [source.sources.NAME].")
    sources = {}
    for name, member in given.items():
        own = dict(member) if isinstance(member, Mapping) else {}
        given_weight = {"weight": own.pop("weight")} if "weight" in own else {}
        weight = validate(WeightedSourceTable, given_weight, f"source.sources.{name}", where).weight
        if own.get("subscribe") or own.get("kind") == "mix":
            raise UserError(
                f"[source.sources.{name}] expects a source of files or a topic without "
                f"'subscribe': "
                "what shares its partitions, or is a mix itself, cannot be mixed."
            )
        sources[str(name)] = (own, weight)
    return sources


__all__ = [
    "SEPARATOR",
    "Member",
    "Mix",
    "MixFormat",
    "MixTable",
    "SourceGroup",
    "WeightedSource",
    "WeightedSourceTable",
    "sources_of",
]
