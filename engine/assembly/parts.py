"""All parts of a pipeline: the table of contents of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from engine.assembly.endpoints import Endpoints
from engine.assembly.judging import Judging
from engine.assembly.model import Model
from engine.assembly.outline import outline
from engine.assembly.saved_schema import parsed_types
from engine.assembly.scrub import Scrub
from engine.assembly.served import LoadedModel
from engine.config import Pipeline
from engine.loading.collate import Collate
from engine.loading.sources.label_times import LabelTimes
from engine.loading.sources.labelled_source import LabelledSource
from engine.observing.metrics import Metrics
from engine.observing.service import Heartbeat, Service
from engine.observing.status import Health
from engine.observing.traces import Attribute, Export, Settings, Traces, require_exportable
from engine.running.late_labels.label_join import LabelJoin
from engine.running.late_labels.late_training import LabelColumns, LateTraining
from engine.running.notes import Notes
from engine.running.saving.migration import BoundStages
from engine.running.saving.segment_files import SegmentFiles
from engine.running.work import Cleaning, Serving, Training, Work, written
from engine.running.written_rows import WrittenRows
from engine.types import (
    PARTITION,
    POSITION,
    RESERVED,
    Batch,
    Features,
    Predictor,
    Schema,
    SharedSource,
    UserError,
    require,
    type_name,
)

if TYPE_CHECKING:
    import torch


WAITING_SHARE = KEYS_SHARE = 8
"""The parts of the memory budget, one in so many, for rows and labels that wait for each other in
memory, unless the pipeline says how much; and for what must be in memory of all that wait."""


class Parts:
    """Builds each part of a pipeline on first use; an unused part is never opened.

    Args:
        replay: whether to read the dead letters instead of the source.
        module: a `torch.nn.Module` in place of [model] module.

    Attributes:
        served: the model file of [infer].
        endpoints: source, sink, dead letters and checkpoints.
        scrub: columns and stages.
        model: the learner with its features.
        judging: evaluation, held-out rows, threshold.
        module: as given.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        replay: bool = False,
        module: torch.nn.Module | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.metrics = metrics
        self.served = LoadedModel(pipeline)
        self.endpoints = Endpoints(pipeline, self.served, replay=replay)
        self.scrub = Scrub(pipeline, self.endpoints, self.served, self._input_columns)
        self.model = Model(pipeline, self.endpoints, self.scrub, module=module)
        self.judging = Judging(pipeline, self.endpoints, self.scrub, self.model)
        self.module = module

    @property
    def keeps_state(self) -> bool:
        """Whether the pipeline learns or its model carries a state, so that this engine alone has
        the state of its rows."""
        served = self.served.predictor
        carries = served is not None and served.carries_state
        return self.pipeline.trains or carries or bool(self.scrub.stateful)

    @cached_property
    def predictor(self) -> Predictor | None:
        """The model that serves, bound to the columns after the stages; None if none does.

        Raises: UserError if they do not fit.
        """
        predictor = self.served.predictor
        if predictor is not None:
            predictor.bind(self.scrub.schema)
        return predictor

    @cached_property
    def collate(self) -> Callable[[Batch], Batch] | None:
        """The last step before the model: makes tensors to train with, a feed to predict with."""
        if self.predictor is not None:
            return self.predictor.collate
        if not self.pipeline.trains:
            return None
        if self.pipeline.late_labels is not None:
            return self._collate_of(replace(self.model.features, target=None))
        first = self.pipeline.answers_first
        return self._collate_of(self.model.features, unlabelled=first)

    @cached_property
    def transfer(self) -> Callable[[Batch], Batch] | None:
        """The copy of tensors to the model's device; None if that is the CPU."""
        if not self.pipeline.trains:
            return None
        from engine.loading.transfer import transfer_to

        transfer = transfer_to(self.model.learner_class.device_of(self.model.training))
        return None if transfer is None else transfer.apply

    @cached_property
    def work(self) -> Work:
        """The work on a batch: train, serve or only clean.

        Raises: UserError for a missing column of [sink] columns.
        """
        columns = self.pipeline.sink_columns
        known = {
            **self.written_schema,
            **self.model_columns,
            **dict.fromkeys(RESERVED, pl.String()),
        }
        require(known, columns or (), where="[sink] columns")
        if self.predictor is not None:
            return Serving(self.predictor, columns)
        if not self.pipeline.trains:
            return Cleaning(columns)
        training: Mapping[str, Any] = {
            "learner": self.model.learner,
            "evaluation": self.judging.evaluation,
            "columns": columns,
            "emit_predictions": self.endpoints.sink is not None,
            "answers_first": self.pipeline.answers_first,
            "holdout": self.judging.holdout,
            "threshold": self.judging.threshold,
            "class_rules": self.model.class_rules,
            "metrics": self.metrics,
        }
        labelled = self.endpoints.labelled
        return Training(**training) if labelled is None else self._late(labelled, training)

    def _late(self, labelled: LabelledSource, training: Mapping[str, Any]) -> LateTraining:
        """Return the training on late labels. Raises: UserError if they do not fit the rows."""
        settings, features, labels = labelled.settings, self.model.features, labelled.label_schema
        times = LabelTimes.of(settings, self.scrub.source_schema, labels)
        columns = LabelColumns(by=settings.key_columns, times=times, target=labelled.target)
        columns.require(self.scrub.columns, labels)
        label = Features(
            numeric=(), target=labelled.target, task=features.task, classes=features.classes
        )
        return LateTraining(
            join=_join(
                times,
                features,
                budget=int(self.pipeline.loader.memory_budget),
                held=settings.memory,
                files=self.endpoints.checkpoints.segments,
            ),
            by=columns,
            # Of its own: the loader's is in use on another thread.
            collate=self._collate_of(replace(features, target=None)),
            collate_labels=Collate(label),
            every=settings.every_rows,
            endless=labelled.unbounded(),
            on_missing=_missing_label(settings.on_missing, labelled),
            **training,
        )

    def _collate_of(self, features: Features, *, unlabelled: bool = False) -> Collate:
        collate = Collate(features, unlabelled=unlabelled)
        collate.bind(self.scrub.schema)
        return collate

    @property
    def written_schema(self) -> Schema:
        """The columns of a row when it is written, without the model's: one that is answered before
        its label comes has none."""
        unlabelled = self.endpoints.labelled is not None and self.pipeline.answers_first
        return self.scrub.columns if unlabelled else self.scrub.learned_schema

    @cached_property
    def sink_schema(self) -> Schema:
        """The columns that the sink gets."""
        places = {PARTITION: pl.String(), POSITION: pl.Int64()}
        every = {**places, **self.written_schema, **self.model_columns}
        names = written(every, self.pipeline.sink_columns, self.model_columns)
        return {name: every[name] for name in names}

    @cached_property
    def written_rows(self) -> WrittenRows | None:
        """The rows that the sink gets; None for all.

        Raises: UserError if [sink] where is no condition on them.
        """
        where = self.pipeline.sink_where
        return None if where is None else WrittenRows(where, self.sink_schema)

    @property
    def model_columns(self) -> Schema:
        """The columns the model adds for the sink."""
        if self.predictor is not None:
            return self.predictor.answers
        return _prediction_columns(self.model.features) if self.pipeline.trains else {}

    @property
    def keep_raw_from(self) -> int | None:
        """The index of the stage before which rows are kept raw, for held-out rows, the evaluation,
        the keys of a state and the time of classes; None if none needs them."""
        evaluates = self.pipeline.trains and bool(self.judging.evaluation.needed)
        carries = self.pipeline.trains and self.model.features.state is not None
        rules = self.model.class_rules if self.pipeline.trains else None
        timed = rules is not None and rules.time is not None
        keeps = self.judging.holdout is not None or evaluates or carries or timed
        return self.scrub.export_from if keeps else None

    @cached_property
    def service_settings(self) -> Service.Settings:
        """The settings of [service]."""
        table = self.pipeline.service or {}
        return self.pipeline.settings(Service.Settings, table, "service")

    @cached_property
    def notes(self) -> Notes:
        """What the live page shows beside the metrics."""
        features = self.model.features if self.pipeline.trains else None
        return Notes(outline(self.pipeline, self.endpoints, features))

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """The heartbeat behind /livez."""
        return Heartbeat(self.service_settings.stall_timeout, metrics=self.metrics)

    @cached_property
    def service(self) -> Service:
        """The HTTP service: the live page, metrics and health."""
        return Service(
            self.metrics,
            self.service_settings,
            live=self.heartbeat.health,
            ready=self._readiness,
            facts=self._facts,
        )

    @cached_property
    def traces(self) -> Traces:
        """The traces of a sample of the batches. Raises: UserError if they cannot be sent."""
        table = self.pipeline.traces
        if table is None:
            return Traces()
        settings = self.pipeline.settings(Settings, table, "traces")
        require_exportable(settings)
        return Traces(settings, partial(self._export, settings), self.traced)

    def _export(self, settings: Settings) -> Export:
        from engine.observing.span_export import SpanExport  # only where there are traces

        return SpanExport(settings, name=self.pipeline.name, metrics=self.metrics)

    def traced(self) -> dict[str, Attribute]:
        """Return the attributes of every trace now."""
        attributes: dict[str, Attribute] = {}
        source = self.pipeline.source
        if source["kind"] == "kafka" and not self.endpoints.replay:
            attributes["messaging.system"] = "kafka"
            if group := source.get("group_id"):
                attributes["messaging.consumer.group.name"] = group
        if self.served.predictor is not None:
            attributes["headrace.model.version"] = self.served.predictor.info()["version"]
        return attributes

    @property
    def bound_stages(self) -> BoundStages:
        """The bound stages, and the features of a model in training."""
        return _bound_stages(self.pipeline, self.scrub, self.model)

    def other_stages(
        self, tables: Mapping[str, Any], columns: Mapping[str, str] | None = None
    ) -> BoundStages:
        """Bind other tables of [scrub] to columns of the same source.

        Args:
            columns: name -> type name; those of this pipeline unless given.

        Raises: UserError if they do not fit.
        """
        sides = {name: self.pipeline.scrub[name]["source"] for name in self.scrub.sides}
        whole = {
            # A checkpoint has only the columns of such a source.
            name: {**table, "source": {**sides[name], **table["source"]}}
            if name in sides and "source" in table
            else table
            for name, table in tables.items()
        }
        pipeline = self.pipeline.model_copy(update={"scrub": whole})
        scrub = Scrub(pipeline, self.endpoints, self.served, self._input_columns)
        known = self.scrub.source_schema
        scrub.source_schema = known if columns is None else parsed_types(columns, known)
        model = Model(
            pipeline,
            self.endpoints,
            scrub,
            module=self.module,
            inferred_classes=lambda: self.model.label.inferred_classes,
        )
        return _bound_stages(pipeline, scrub, model)

    def _input_columns(self) -> tuple[str, ...]:
        late = self.pipeline.late_labels
        joined = () if late is None else (*late.key_columns, late.time)
        return (*self.model.input_columns, *joined)

    def _facts(self, samples: bool) -> Mapping[str, Any]:
        """Return what the live page shows beside the metrics; private rows only if [service] says
        so."""
        private = self.service_settings.samples is None and self.endpoints.private
        return self.notes.facts(samples and not private)

    def _readiness(self) -> Health:
        """Return the health for /readyz: alive, and the source can give records."""
        health, source = self.heartbeat.health(), self.endpoints.source
        if health.ok and isinstance(source, SharedSource):
            reason = source.unavailable_reason()
            if reason is not None:
                return Health(False, reason)
        reasons = (side.unavailable_reason() for side in self.scrub.sides.values())
        reason = next((reason for reason in reasons if reason is not None), None)
        return health if reason is None or not health.ok else Health(False, reason)


def _join(
    times: LabelTimes, features: Features, *, budget: int, held: int | None, files: SegmentFiles
) -> LabelJoin:
    """Return the join of rows and labels, which holds so many bytes of them in memory.

    Raises: UserError for more than half of the budget.
    """
    if held is not None and held > budget // 2:
        raise UserError(
            f"[labels] memory is {held:,} bytes, and half of [loader] memory_budget is "
            f"{budget // 2:,}: lower it, or raise the budget."
        )
    held = budget // WAITING_SHARE if held is None else int(held)
    return LabelJoin(
        horizon=times.horizon,
        lateness=times.lateness,
        most=held + budget // KEYS_SHARE,
        corrections=times.corrections,
        files=files,
        held=held,
        scaled=[name for name in features.numeric if name in features.scaled],
    )


def _missing_label(value: Any, labelled: LabelledSource) -> pl.Series | None:
    """Return a label as a column of the labels has it. Raises: UserError if it cannot."""
    if value is None:
        return None
    target = labelled.target
    dtype = labelled.label_schema[target]
    try:
        return pl.Series(target, [value]).cast(dtype)
    except PolarsError:
        raise UserError(
            f"[labels] on_missing expects a label as '{target}' holds them, {type_name(dtype)}, "
            f"got {value!r}."
        ) from None


def _bound_stages(pipeline: Pipeline, scrub: Scrub, model: Model) -> BoundStages:
    features = model.features if pipeline.trains else None
    return BoundStages(stages=scrub.stages, schema=scrub.schema, features=features)


def _prediction_columns(features: Features) -> Schema:
    """Return the columns that a model of these features adds."""
    scores = np.empty(features.score_shape(0))
    return {column.name: column.dtype for column in features.prediction_columns(scores)}


__all__ = ["Parts"]
