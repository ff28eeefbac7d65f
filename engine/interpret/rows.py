"""The rows a model is judged on: held-out ones, or else the newest of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from engine.assembly.parts import Parts
from engine.config import LoaderSettings, Pipeline, detached_source
from engine.loading.loader import Loader
from engine.types import PART, Batch, Source, UserError
from engine.types.plural import counted

Watch = Callable[[str, float | None], None]
"""Is told what is done, and the share of it that is."""
READ_AGAIN = ("epochs", "follow")
"""Keys of a source that reads rows several times, or waits for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRows:
    """Rows as they are before the stages inside a model file.

    Attributes:
        frame: the rows, oldest first, with the reserved columns.
        which: which rows these are, in words.
        learned: whether the model has learned them.
    """

    frame: pl.DataFrame
    which: str
    learned: bool


@dataclass(slots=True)
class Newest:
    """The newest rows of a stream.

    Args:
        most: how many.
        nbytes: the most bytes of them, but for the newest batch.

    Attributes:
        cut: whether there were more rows than fit into these bytes.
    """

    most: int
    nbytes: int
    cut: bool = False
    frames: list[pl.DataFrame] = field(default_factory=list)

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows; drop frames that only have older ones than needed."""
        if frame.height:
            self.frames.append(frame.tail(self.most))
        while sum(frame.height for frame in self.frames[1:]) >= self.most:
            del self.frames[0]
        while len(self.frames) > 1 and self._size > self.nbytes:
            del self.frames[0]
            self.cut = True

    @property
    def _size(self) -> int:
        return sum(int(frame.estimated_size()) for frame in self.frames)

    def frame(self) -> pl.DataFrame | None:
        """Return them, oldest first; None if there are none."""
        return pl.concat(self.frames, how="diagonal").tail(self.most) if self.frames else None


def kept_rows(parts: Parts, most: int) -> JudgedRows | None:
    """Return the newest held-out rows of a restored pipeline; None if it holds none out."""
    frame = None if parts.judging.holdout is None else parts.judging.holdout.frame()
    if frame is None or not frame.height:
        return None
    frame = frame.tail(most)
    return JudgedRows(frame=frame, which="held out: predicted, never learned", learned=False)


def rows_of_source(parts: Parts, most: int, extra: tuple[str, ...], watch: Watch) -> JudgedRows:
    """Read the source to its end; return the newest rows, of a `split` stage those that were not
    learned.

    Args:
        parts: of a pipeline that `read_once` made. Its stages start afresh, so they do to each row
            what they did when it came first.
        extra: columns to read beside those of the pipeline.

    Raises: UserError if the source cannot be read again, has no end or no row.
    """
    pipeline, source, scrub = parts.pipeline, parts.endpoints.source, parts.scrub
    schema, stages = scrub.source_schema, scrub.stages
    _require_readable(pipeline, source)
    columns = {**scrub.read_schema, **{c: schema[c] for c in extra if c in schema}}
    raw_from = scrub.export_from if pipeline.trains else len(stages)
    budget = int(pipeline.loader.memory_budget)
    held, learned, read = Newest(most, budget), Newest(most, budget), 0
    loader = Loader(
        source,
        schema=columns,
        stages=stages,
        collate=None,
        settings=LoaderSettings(
            batch_rows=pipeline.loader.batch_rows, memory_budget=pipeline.loader.memory_budget
        ),
        keep_raw_from=raw_from,
    )
    with loader:
        for batch in loader:
            read += batch.raw_rows
            _divide(batch, held, learned)
            watch(f"reading: {counted(read, 'row')}", source.progress(batch.mark))
    return _chosen(pipeline, held, learned, read)


def _divide(batch: Batch, held: Newest, learned: Newest) -> None:
    """Put the rows of the part that trains on one side, and others on the other."""
    assert batch.raw is not None, "the loader keeps raw rows"
    if PART not in batch.frame.columns:
        learned.add(batch.raw)
        return
    frame = batch.raw.with_columns(batch.frame[PART])
    trains = frame[PART] == "train"
    held.add(frame.filter(~trains))
    learned.add(frame.filter(trains))


def _chosen(pipeline: Pipeline, held: Newest, learned: Newest, read: int) -> JudgedRows:
    if (frame := held.frame()) is not None:
        which = f"of the parts that are predicted and never learned{_fitting(held)}"
        return JudgedRows(frame=frame, which=which, learned=False)
    if (frame := learned.frame()) is None:
        raise UserError(
            f"{pipeline.file} has no rows to judge the model on: its source gave "
            f"{counted(read, 'record')}, and none came through the stages."
        )
    known = ", which it has learned"
    if not pipeline.trains:
        known = "; whether the model has learned them is not known"
    which = f"the newest of the source{_fitting(learned)}{known}"
    return JudgedRows(frame=frame, which=which, learned=pipeline.trains)


def _fitting(rows: Newest) -> str:
    return ", as many as [loader] memory_budget holds" if rows.cut else ""


def _require_readable(pipeline: Pipeline, source: Source) -> None:
    if pipeline.late_labels is not None:
        raise UserError(
            f"{pipeline.file} has [labels], which come later than their rows, so the rows of its "
            "source have none: an [export] section holds rows with their labels out."
        )
    held = (
        ", and no rows are held out: an [export] section holds some out" if pipeline.trains else ""
    )
    if not source.can_be_reread():
        raise UserError(f"The source of {pipeline.file} can be read only once{held}.")
    if source.unbounded():
        raise UserError(f"The source of {pipeline.file} has no end{held}.")


def read_once(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with a source that gives each row that is there now once, and joins no
    group."""
    return pipeline.model_copy(update={"source": _once(pipeline.source)})


def _once(source: Mapping[str, Any]) -> dict[str, Any]:
    table = {key: value for key, value in detached_source(source).items() if key not in READ_AGAIN}
    if isinstance(table.get("sources"), dict):
        table["sources"] = {
            name: _once(own) if isinstance(own, dict) else own
            for name, own in table["sources"].items()
        }
    return table


__all__ = ["JudgedRows", "Watch", "kept_rows", "read_once", "rows_of_source"]
