"""Parts of a pipeline that take their time: sleeps stand for the work, so that figures are
exact."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.values.columns import Columns
from connectors.memory import MemorySink
from engine import types
from engine.types import (
    Batch,
    EndOfStream,
    Mark,
    Records,
    Rejects,
    Schema,
    Snapshot,
    Step,
    Tensors,
    Transform,
)


class Source(types.Source):
    """`rows` numbers; each read takes `seconds`, each decode `decode` seconds a row."""

    class Settings(types.Settings):
        rows: int = 100_000
        seconds: float = 0.0
        decode: float = 0.0

    def __init__(self, settings: Source.Settings) -> None:
        self.settings = settings
        self.format = Decode(settings.decode)
        self._at = 0

    def schema(self, declared: Schema) -> Schema:
        return {"a": pl.Float64(), "y": pl.Float64()}

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        n = min(max_rows, self.settings.rows - self._at)
        if not n:
            raise EndOfStream
        time.sleep(self.settings.seconds)
        first, self._at = self._at, self._at + n
        values = np.arange(first, self._at, dtype=np.float64)
        return Records(
            partition="slow",
            positions=np.arange(first, self._at),
            next=self._at,
            values=pl.DataFrame({"a": values, "y": values}),
            arrived=time.monotonic(),
        )

    def seek(self, mark: Mark) -> None:
        self._at = mark.positions.get("slow", 0)

    def commit(self, mark: Mark) -> bool:
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {}

    def progress(self, mark: Mark) -> float | None:
        return None

    def close(self) -> None: ...


class Decode(Columns):
    """Columns, after a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        time.sleep(self.seconds * len(records))
        return super().decode(records, schema)


class Stage(types.Stage):
    """Changes nothing; each batch takes `seconds`."""

    class Settings(types.Settings):
        seconds: float

    def apply(self, batch: Batch) -> Batch:
        time.sleep(self.settings.seconds)
        return batch

    def transforms(self) -> Sequence[Transform] | None:
        return ()


class Learner(types.Learner):
    """Learns nothing; each batch takes `seconds`."""

    class Settings(types.Settings):
        seconds: float

    class Training(types.Settings):
        pass

    def learn(self, batch: Batch) -> Step:
        time.sleep(self.settings.seconds)
        return Step(scores=np.zeros(len(batch)), loss=0.0)

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        return np.zeros(len(tensors.numeric))

    def state_dict(self) -> dict[str, Snapshot]:
        return {}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None: ...


class Sink(MemorySink):
    """Keeps nothing; each write takes `seconds`."""

    class Settings(MemorySink.Settings):
        seconds: float

    settings: Any

    def write(self, frame: pl.DataFrame, places: pl.DataFrame | None = None) -> None:
        time.sleep(self.settings.seconds)
