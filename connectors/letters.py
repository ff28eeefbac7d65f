"""Dead letters read back: the records that they hold, as if they came for the first time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from connectors.files.source import FilesSource
from connectors.formats.ndjson import Ndjson
from connectors.kafka.source import KafkaSource
from engine.types import Format, Mark, Records, Schema, Snapshot, Source, UserError, Values

LETTER: Schema = {"value": pl.String(), "raw": pl.String(), "key": pl.String()}
"""What is read of a file of dead letters; ``raw`` and ``key`` are in base64."""


class FileLetters(Source):
    """See `engine.types.Source`. A folder of dead letters as a source of what they hold, decoded as
    the pipeline's own source does. Reads the parts that are there when it is made.

    Args:
        folder: where `FilesSink` wrote them.
        source: the pipeline's own.
    """

    def __init__(self, folder: Path, source: Source) -> None:
        """Raises: UserError where there are none."""
        if not list(folder.glob("part-*.ndjson")):
            raise UserError(f"There are no dead letters in {folder}: nothing to replay.")
        self._inner = FilesSource(FilesSource.Settings(path=str(folder / "part-*.ndjson")))
        self._source = source
        self.format = _format(source)
        self._end = b"\n" if _has_lines(source) else b""

    def schema(self, declared: Schema) -> Schema:
        """The pipeline's own."""
        return self._source.schema(declared)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """See `engine.types.Source`."""
        letters = self._inner.read(max_rows, max_bytes, timeout)
        if letters is None:
            return None
        frame, broken = Ndjson().decode(letters, LETTER)
        if broken:
            raise UserError(
                f"{letters.partition} holds lines that are no dead letters: expected what headrace "
                "wrote there; mend it, or move it away."
            )
        raw = frame["raw"].str.decode("base64", strict=False)
        values = [
            (value or "").encode() if original is None else original
            for original, value in zip(raw, frame["value"], strict=True)
        ]
        lines = [value + self._end for value in values]
        return Records(
            partition=letters.partition,
            positions=letters.positions,
            next=letters.next,
            values=Values(
                data=np.frombuffer(b"".join(lines), np.uint8),
                bounds=np.cumsum([0, *map(len, lines)]).astype(np.int64),
            ),
            arrived=letters.arrived,
            keys=_keys(frame["key"]),
        )

    def seek(self, mark: Mark) -> None:
        """See `engine.types.Source`."""
        self._inner.seek(mark)

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """See `engine.types.Source`."""
        return self._inner.identities(mark)

    def recognise(self, identities: Mapping[str, Snapshot]) -> None:
        """See `engine.types.Source`."""
        self._inner.recognise(identities)

    def commit(self, mark: Mark) -> bool:
        """Nothing: the checkpoint knows what was replayed."""
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """See `engine.types.Source`."""
        return self._inner.lag(mark)

    def progress(self, mark: Mark) -> float | None:
        """See `engine.types.Source`."""
        return self._inner.progress(mark)

    def close(self) -> None:
        """See `engine.types.Source`."""
        self._inner.close()


def topic_letters(topic: str, settings: KafkaSource.Settings) -> KafkaSource:
    """A topic of dead letters as a source of what it holds now, decoded as the pipeline's own
    source, with these settings, does."""
    own = {"topics": (topic,), "stop": "end", "start": "earliest", "join": False, "group": None}
    return KafkaSource(settings.model_copy(update=own))


def _has_lines(source: Source) -> bool:
    """Whether a line end closes the records."""
    if isinstance(source, FilesSource):
        return source.has_lines
    return not isinstance(source, KafkaSource) or source.settings.format in ("ndjson", "csv")


def _keys(column: pl.Series) -> Values:
    keys = [key or b"" for key in column.str.decode("base64", strict=False)]
    return Values(
        data=np.frombuffer(b"".join(keys), np.uint8),
        bounds=np.cumsum([0, *map(len, keys)]).astype(np.int64),
        null=column.is_null().to_numpy(),
    )


def _format(source: Source) -> Format:
    """As a record of this source is decoded, wherever it lies; rows of columns are JSON there."""
    if isinstance(source, FilesSource):
        return source.format_of_lines()
    return source.format if isinstance(source, KafkaSource) else Ndjson()


__all__ = ["FileLetters", "topic_letters"]
