"""Reads dead letters back: gives the records they hold, as if these came for the first time."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.files.fingerprint import REPLAYED
from connectors.files.readers.file_rows import UNREADABLE
from connectors.files.source import FilesSource
from connectors.formats.file_content import UnreadFiles
from connectors.formats.kernels.rows import values
from connectors.formats.ndjson import Ndjson
from connectors.kafka.reading.membership import partition_name
from connectors.kafka.replayed_letters import ReplayedLetters
from connectors.kafka.source import KafkaSource
from connectors.kafka.value_checks import TOMBSTONE
from engine.types import (
    NO_TIMESTAMP,
    PARTITION,
    POSITION,
    Format,
    Mark,
    Records,
    Rejects,
    Schema,
    Snapshot,
    Source,
    UserError,
)
from engine.types.plural import counted

DEAD_LETTER_SCHEMA: Schema = {
    "of": pl.String(), "at": pl.Int64(), "reason": pl.String(), "timestamp": pl.Int64(),
    "value": pl.String(), "raw": pl.String(), "key": pl.String(), "headers": pl.String(),
}  # fmt: skip
"""The columns read from a file of dead letters; the last three are base64."""
REPLAYED_LETTERS = "replayed letters"
"""The name, beside partitions, of what a checkpoint says about the letters of a topic."""
ORIGIN_PATHS = {"of": PARTITION, "at": POSITION}
"""Where the first two are in a dead letter."""


def _runs(partitions: pl.Series) -> list[tuple[int, int]]:
    """Return runs of adjacent rows from one partition: from, to."""
    ends = np.flatnonzero(np.append((partitions[1:] != partitions[:-1]).to_numpy(), True)) + 1
    return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))


class FileDeadLetterSource(Source):
    """Reads a folder of dead letters: gives the records they hold, decoded as the pipeline's
    source does. Reads the parts that exist when it is built.

    Args:
        folder: where `FilesSink` wrote them.
        source: the pipeline's own.
        parts: where that is a mix: how partitions of each of its sources begin -> that source.
    """

    def __init__(
        self, folder: Path, source: Source, parts: Mapping[str, Source] | None = None
    ) -> None:
        """Raises: UserError if there are none."""
        if not list(folder.glob("part-*.ndjson")):
            raise UserError(f"There are no dead letters in {folder}: nothing to replay.")
        self._inner = FilesSource(FilesSource.Settings(path=str(folder / "part-*.ndjson")))
        self._foreign_identities: Mapping[str, Snapshot] = {}
        self._source = source
        self._parts = parts or {"": source}
        self.format: Format = self._replay_format()
        self._waiting: deque[Records] = deque()

    def schema(self, declared: Schema) -> Schema:
        """Return the pipeline source's schema."""
        return self._source.schema(declared)

    def schema_state(self) -> Mapping[str, Snapshot]:
        """Return the pipeline source's state."""
        return self._source.schema_state()

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return the pipeline source's values."""
        return self._source.in_effect()

    def found(self) -> str:
        """Return what the pipeline's source found."""
        return self._source.found()

    def remarks(self) -> Sequence[str]:
        """Return the pipeline source's remarks."""
        return self._source.remarks()

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        self._source.restore_schema_state(schema_state)

    def parse_settings(self) -> Mapping[str, Any]:
        """The pipeline's own."""
        return self._source.parse_settings()

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        self._source.use_parse_settings(parse_settings)
        self.format = self._replay_format()

    def origin_columns(self) -> Collection[str]:
        """The pipeline's own."""
        return self._source.origin_columns()

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if not self._waiting:
            letters = self._inner.read(max_rows, max_bytes, timeout)
            if letters is None:
                return None
            self._waiting.extend(self._unwrapped(letters))
        return self._waiting.popleft()

    def seek(self, mark: Mark) -> None:
        self._waiting.clear()
        self._inner.seek(mark)

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return the identities of replayed files, and those of other partitions unchanged."""
        return {**self._foreign_identities, REPLAYED: dict(self._inner.identities(mark))}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        self._foreign_identities = {name: k for name, k in identities.items() if name != REPLAYED}
        self._inner.match_identities(identities.get(REPLAYED, {}))

    def commit(self, mark: Mark) -> bool:
        """Do nothing: the checkpoint records what was replayed."""
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return self._inner.lag(mark)

    def lag_unit(self, partition: str) -> str:
        return self._inner.lag_unit(partition)

    def progress(self, mark: Mark) -> float | None:
        return self._inner.progress(mark)

    def close(self) -> None:
        self._inner.close()

    def _replay_format(self) -> ReplayFormat:
        return ReplayFormat({begin: _line_format(s) for begin, s in self._parts.items()})

    def _unwrapped(self, letters: Records) -> Iterator[Records]:
        """Unwrap dead letters, adjacent ones from one source at a time."""
        frame, broken = Ndjson(ORIGIN_PATHS).decode(letters, DEAD_LETTER_SCHEMA)
        if broken:
            raise UserError(
                f"{letters.partition} holds lines that are no dead letters: expected only lines "
                "that headrace wrote; fix it, or move it away."
            )
        begins = _matching_prefixes(frame["of"], self._parts)
        ends = np.flatnonzero(np.append(begins[1:] != begins[:-1], True)) + 1
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            own = frame.slice(start, stop - start)
            source = self._parts[begins[start]]
            yield _records(letters.slice(int(start), int(stop)), own, source)


class KafkaDeadLetterSource(KafkaSource):
    """A topic of dead letters, up to its current end, decoded as the pipeline's source does.

    Args:
        topic: where `KafkaDeadLetterSink` wrote them.
        settings: the own source's.
    """

    def __init__(self, topic: str, settings: KafkaSource.Settings) -> None:
        own = {
            "topics": (topic,), "stop": "end", "start": "earliest", "subscribe": False,
            "group_id": None,
        }  # fmt: skip
        super().__init__(settings.model_copy(update=own))
        self._joins = settings.subscribe
        self.keep_metadata()  # the headers say where they come from
        self.format = ReplayFormat({"": self.format})
        self._letters = ReplayedLetters()
        self._waiting: deque[Records] = deque()

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return the pipeline source's values."""
        return {} if self._joins else super().in_effect()

    def seek(self, mark: Mark) -> None:
        self._waiting.clear()
        super().seek(mark)
        own = {} if self._joins else mark.positions  # others may be ahead in a group's partitions
        self._letters.begin({**own, **self._positions.nexts})

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if not self._waiting:
            letters = super().read(max_rows, max_bytes, timeout)
            if not letters:
                return letters
            self._waiting.extend(self._letters.unwrapped(letters))
        return self._waiting.popleft()

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return the ids of topics, and what was replayed. Once all letters are, no engine that
        reads its partitions alone writes another one of the same parent."""
        stops = self._positions.stops
        done = bool(stops) and all(
            mark.positions.get(partition_name(tp), 0) >= stop for tp, stop in stops.items()
        )
        known = b"" if done and not self._joins else self._letters.snapshot(mark.positions)
        return {**super().identities(mark), REPLAYED_LETTERS: known}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        topics = {name: known for name, known in identities.items() if name != REPLAYED_LETTERS}
        super().match_identities(topics)
        self._letters.restore(identities.get(REPLAYED_LETTERS, b""))

    def remarks(self) -> Sequence[str]:
        """Return how many letters were left out, and why."""
        topic, letters = self.settings.topics[0], self._letters
        one, more = f"dead letter of topic '{topic}' is", f"dead letters of topic '{topic}' are"
        reasons = {
            "that has another one there": letters.repeats,
            "after the checkpoint, which is read again": letters.early,
        }
        return [
            f"{counted(n, one, more)} of a record {why}: left out, so that each record counts once."
            for why, n in reasons.items()
            if n
        ]


class ReplayFormat(Format):
    """Decodes replayed records. Rows keep the position of their first reading, not that of their
    letters.

    Args:
        formats: how partitions of a source begin -> what its records are decoded by.
    """

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self._formats = formats

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode with the format of the source each record came from."""
        origins = records.origins
        assert origins is not None, "these records come for the first time"
        if not len(records):
            return next(iter(self._formats.values())).decode(records, schema)
        begin = _matching_prefixes(origins[PARTITION].head(1), self._formats)[0]
        bare = origins.with_columns(pl.col(PARTITION).str.strip_prefix(begin))
        own, partitions = replace(records, origins=bare), bare.get_column(PARTITION)
        decoded = [
            self._formats[begin].decode(
                replace(own.slice(start, stop), partition=partitions[start]), schema
            )
            for start, stop in _runs(partitions)
        ]
        frame = pl.concat([frame for frame, _ in decoded])
        rejects = [reject for _, more in decoded for reject in more]

        def placed(rows: pl.DataFrame) -> pl.DataFrame:
            at = np.searchsorted(records.positions, rows[POSITION].to_numpy())
            return rows.with_columns(origins[at])

        return placed(frame), [replace(reject, rows=placed(reject.rows)) for reject in rejects]

    def interrupt(self) -> None:
        for part in self._formats.values():
            part.interrupt()

    def resume(self) -> None:
        for part in self._formats.values():
            part.resume()


def _matching_prefixes(partitions: pl.Series, known: Mapping[str, object]) -> NDArray[np.object_]:
    """Return which known prefix each partition's name has, shape (n,).

    Raises: UserError if it has none.
    """
    matches = pl.Series([None], dtype=pl.String).new_from_index(0, len(partitions))
    for begin in known:
        which = partitions.str.starts_with(begin) & matches.is_null()
        matches = matches.zip_with(~which, pl.Series([begin]).new_from_index(0, len(partitions)))
    if matches.null_count():
        odd = partitions.filter(matches.is_null())[0]
        raise UserError(
            f"A dead letter comes from '{odd}', and [source.sources] has {', '.join(known)}: give "
            "that source its name again, or move the letter away."
        )
    return matches.to_numpy(allow_copy=True)


def _records(letters: Records, frame: pl.DataFrame, source: Source) -> Records:
    """Unwrap dead letters into the records they contain."""
    raw = frame["raw"].str.decode("base64", strict=False)
    if isinstance(source, FilesSource):  # whose encoding may have been set since
        raw = source.recoded_lines(raw)
    gone = frame["raw"].is_null() & frame["reason"].is_in([TOMBSTONE, UNREADABLE])
    value = raw.zip_with(raw.is_not_null(), frame["value"].fill_null("").cast(pl.Binary))
    tail = int(isinstance(source, KafkaSource) and source.has_lines)
    if tail:
        value = _with_newline(value)
    elif not isinstance(source, KafkaSource | FilesSource) or source.has_lines:
        value = value.zip_with(value.bin.ends_with(b"\n"), _with_newline(value))
    keys, headers = (
        values(frame[name].str.decode("base64", strict=False)) for name in ("key", "headers")
    )
    raw_values = values(value)
    return replace(
        letters,
        values=replace(raw_values, tail=tail, null=gone.to_numpy() if gone.any() else None),
        keys=keys,
        headers=headers,
        timestamps=frame["timestamp"].fill_null(NO_TIMESTAMP).to_numpy(),
        origins=frame.select(pl.col("of").alias(PARTITION), pl.col("at").alias(POSITION)),
    )


def _with_newline(value: pl.Series) -> pl.Series:
    """Return the values with a line end after each."""
    return pl.select(pl.lit(value) + pl.lit(b"\n")).to_series()


def _line_format(source: Source) -> Format:
    """Return the format of one record of this source, outside its file; columnar rows are JSON."""
    if isinstance(source, FilesSource):
        return UnreadFiles(source.format_of_lines())
    return source.format if isinstance(source, KafkaSource) else Ndjson()


__all__ = ["FileDeadLetterSource", "KafkaDeadLetterSource"]
