"""The columns of the source, and the stages bound to them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import polars as pl

from engine.assembly.components import make_stages
from engine.assembly.endpoints import Endpoints
from engine.assembly.served import LoadedModel
from engine.config import Pipeline
from engine.projection import projected
from engine.scrub.side_source import SideSource, SideStage, sides_of
from engine.types import (
    DELAY,
    DROPPED,
    PART,
    RESERVED,
    WILDCARD,
    Affine,
    Scale,
    Scales,
    Schema,
    Stage,
    Transform,
    UnreadableFile,
    UserError,
    parse_schema,
    require_names,
)
from engine.user_code import calls

log = logging.getLogger("headrace.run")


class Scrub:
    """Resolves the columns of the source and binds the stages, on first use.

    A caller that knows the columns may set `source_schema` first.

    Args:
        input_columns: returns columns that the model reads and no table names.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        endpoints: Endpoints,
        served: LoadedModel,
        input_columns: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._pipeline = pipeline
        self._endpoints = endpoints
        self._served = served
        self._input_columns = input_columns

    @cached_property
    def source_schema(self) -> Schema:
        """The decoded columns. A resumed run keeps those it started with, whatever types its rows
        suggest.

        Raises: UserError for a name reserved by headrace.
        """
        schema = self._resolved_schema()
        require_names(schema, f"[source] in {self._pipeline.file}")
        late = () if self._endpoints.labelled is None else (DELAY,)
        for column in (PART, *late, *RESERVED):
            if column in schema:
                raise UserError(
                    f"[source] in {self._pipeline.file} has a column '{column}', a name that "
                    "headrace itself adds: rename it, or leave it out by declaring the others in "
                    "[source.schema]."
                )
        return schema

    @property
    def content_schema(self) -> Schema:
        """The decoded columns without those of a row's origin, which the source adds by itself:
        what a resumed run declares."""
        added = self._endpoints.source.origin_columns()
        return {c: dtype for c, dtype in self.source_schema.items() if c not in added}

    @property
    def knows_columns(self) -> bool:
        """Whether `source_schema` is resolved or set."""
        return "source_schema" in vars(self)

    @cached_property
    def stages(self) -> list[Stage]:
        """The bound stages in order; for serving, without those inside the model file."""
        return self._bound[0]

    @cached_property
    def schema(self) -> Schema:
        """The columns after the last stage, and the label's, if it comes later."""
        columns, labelled = self.columns, self._endpoints.labelled
        if labelled is None:
            return columns
        target = labelled.target
        return {**columns, target: labelled.label_schema[target]}

    @property
    def learned_schema(self) -> Schema:
        """The columns of a learned row: `schema`, and how much later its label came."""
        late = self._endpoints.labelled is not None
        return {**self.schema, DELAY: pl.Float64()} if late else self.schema

    @property
    def columns(self) -> Schema:
        """The columns after the last stage."""
        return self._bound[1][-1]

    @cached_property
    def read_schema(self) -> Schema:
        """The columns of the source that the pipeline uses; a run decodes no others."""
        more = [*self._served.columns_read(self.schema), *self._input_columns()]
        return projected(self._pipeline, self.source_schema, self.stages, more)

    @property
    def unread_columns(self) -> set[str]:
        """The columns of the source that neither stages nor model read. Other readers may change
        from run to run, so these columns may come and go."""
        without: dict[str, Any] = dict.fromkeys(("train", "evaluation", "export"))
        without |= {"sink": {"columns": []}, "augment": {}}
        alone = self._pipeline.model_copy(update=without)
        read = projected(alone, self.source_schema, self.stages, self._input_columns())
        return self.source_schema.keys() - read.keys()

    @property
    def export_from(self) -> int:
        """The index of the first stage inside the model file: all from there on can be exported."""
        index = len(self.stages)
        while index and self.stages[index - 1].transforms() is not None:
            index -= 1
        return index

    @property
    def export_schema(self) -> Schema:
        """The columns a model file reads: those before the stages inside it."""
        return self._bound[1][self.export_from]

    @property
    def transforms(self) -> list[Transform]:
        """What the stages inside the model file do now."""
        stages = self.stages[self.export_from :]
        return [transform for stage in stages for transform in stage.transforms() or ()]

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Column -> the number of its codes, of the columns that stages encode."""
        return {c: n for stage in self.stages for c, n in stage.vocabulary_sizes().items()}

    @property
    def encoders(self) -> dict[str, Any]:
        """Column -> what encodes a value of it, of the columns that stages encode."""
        return {c: one for stage in self.stages for c, one in stage.encoders().items()}

    @property
    def scales(self) -> Scales:
        """What all stages scale columns with now, in their order."""
        return tuple(
            Scale(columns=(t.column,), shift=np.array([t.shift]), factor=np.array([t.scale]))
            for stage in self.stages
            for t in stage.transforms() or ()
            if isinstance(t, Affine) and t.column in stage.scaled
        )

    @property
    def stateful(self) -> list[Stage]:
        """The stages with a state of the rows, which the place in a source beside them is not."""
        return [stage for stage in self.stages if _keeps_state(stage)]

    @property
    def sides(self) -> dict[str, SideSource]:
        """Name of a stage -> the source that it reads beside the stream."""
        return sides_of(self.stages)

    def another_chain(self, *, read: bool = True) -> list[Stage]:
        """Build and bind a second set of stages, so that those of the run learn nothing.

        Args:
            read: whether they read the sources that they have beside the stream.
        """
        side_source = partial(self._endpoints.side_source, read=read)
        stages = make_stages(self._pipeline, self._served.exported_stages, side_source)
        schema = self.source_schema
        for stage in stages:
            schema = calls.bind(stage, schema)
        return stages

    def is_untyped(self) -> bool:
        """Return whether all columns are text only because the source has no rows yet."""
        if self._pipeline.source.get("schema"):
            return False
        source = self._endpoints.source
        if source.unbounded() or not source.can_be_reread():
            return False
        if any(dtype != pl.String for dtype in self.source_schema.values()):
            return False
        with contextlib.closing(self._endpoints.another_source()) as source:
            source.schema({})
            return not source.sample(1, 1.0)

    @cached_property
    def _bound(self) -> tuple[list[Stage], Sequence[Schema]]:
        """The stages, and the columns before the first and after each stage."""
        stages = make_stages(
            self._pipeline, self._served.exported_stages, self._endpoints.side_source
        )
        schemas = [self.source_schema]
        for stage in stages:
            schemas.append(calls.bind(stage, schemas[-1]))
            require_names(schemas[-1], f"[scrub.{stage.name}] in {self._pipeline.file}")
        self._served.require_trained_behind(stages)
        return stages, schemas

    def _resolved_schema(self) -> Schema:
        table = self._pipeline.source.get("schema", {})
        declared = parse_schema(table)
        source, predictor = self._endpoints.source, self._served.predictor
        if predictor is not None:  # cells are parsed as in training, also where a run resumes
            source.use_parse_settings(predictor.parse_settings)
        saved = self._endpoints.resumed_schema
        known = saved.schema(table)
        if not known:
            return self._typed_by_model(declared)
        source.restore_schema_state(saved.findings)
        try:
            return calls.schema(source, {**known, WILDCARD: DROPPED})
        except UnreadableFile:  # which says nothing of the columns
            raise
        except UserError as error:
            log.warning(
                "The columns of the run so far no longer fit and are resolved again: %s", error
            )
            source.restore_schema_state({})
            return calls.schema(source, declared)

    def _typed_by_model(self, declared: Schema) -> Schema:
        """Return the columns of the source, with the types the model learned. That applies to
        undeclared columns that no stage precedes: a guess from other rows may differ."""
        predictor, source = self._served.predictor, self._endpoints.source
        schema = calls.schema(source, declared)
        self._served.require_processed(schema, declared)
        if predictor is None or set(self._pipeline.scrub) - set(predictor.stages):
            return schema
        types: Schema = {
            column: dtype
            for column, dtype in predictor.columns.items()
            if column in schema and column not in declared and schema[column] != dtype
        }
        return calls.schema(source, {**declared, **types}) if types else schema


def _keeps_state(stage: Stage) -> bool:
    if isinstance(stage, SideStage) and stage.side is not None and not stage.keeps_what_it_read:
        return False
    return stage.snapshot() is not None


__all__ = ["Scrub"]
