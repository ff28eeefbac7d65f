"""All parts of a pipeline: the table of contents of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from engine.assembly.endpoints import Endpoints
from engine.assembly.model import Model
from engine.assembly.scrub import Scrub
from engine.assembly.served import Served
from engine.config import Pipeline
from engine.loading.collate import Collate
from engine.observing.metrics import Metrics
from engine.observing.service import Health, Heartbeat, Service
from engine.running.migration import BoundStages
from engine.running.work import Cleaning, Serving, Training, Work
from engine.types import RESERVED, Batch, Features, Schema, SharedSource, require


class Parts:
    """Builds each part of a pipeline on first use; an unused part is never opened.

    Args:
        replay: whether to read the dead letters instead of the source.

    Attributes:
        served: the model file of [infer].
        endpoints: source, sink, dead letters and checkpoints.
        scrub: columns and stages.
        model: the learner with features, evaluation and held-out rows.
    """

    def __init__(self, pipeline: Pipeline, metrics: Metrics, *, replay: bool = False) -> None:
        self.pipeline = pipeline
        self.metrics = metrics
        self.served = Served(pipeline)
        self.endpoints = Endpoints(pipeline, self.served, replay=replay)
        self.scrub = Scrub(pipeline, self.endpoints, self.served)
        self.model = Model(pipeline, self.endpoints, self.scrub)

    @property
    def keeps_state(self) -> bool:
        """Whether the pipeline learns, so that this engine alone has the state of its rows."""
        return self.pipeline.trains or bool(self.scrub.stateful)

    @cached_property
    def collate(self) -> Callable[[Batch], Batch] | None:
        """The last step before the model: makes tensors to train with, a feed to predict with."""
        if self.served.predictor is not None:
            return self.served.predictor.collate
        if not self.pipeline.trains:
            return None
        collate = Collate(self.model.features)
        collate.bind(self.scrub.schema)
        return collate

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
        predictor = self.served.predictor
        if predictor is not None:
            predictor.bind(self.scrub.schema)
        known = {**self.scrub.schema, **self.model_columns, **dict.fromkeys(RESERVED, pl.String())}
        require(known, columns or (), where="[sink] columns")
        if predictor is not None:
            return Serving(predictor, columns)
        if not self.pipeline.trains:
            return Cleaning(columns)
        return Training(
            self.model.learner,
            self.model.evaluation,
            columns=columns,
            emit_predictions=self.endpoints.sink is not None,
            holdout=self.model.holdout,
            threshold=self.model.threshold,
            metrics=self.metrics,
        )

    @property
    def model_columns(self) -> Schema:
        """The columns the model adds for the sink."""
        predictor = self.served.predictor
        if predictor is not None:
            return {**_prediction_columns(predictor.features), "model_version": pl.String()}
        return _prediction_columns(self.model.features) if self.pipeline.trains else {}

    @property
    def keep_raw_from(self) -> int | None:
        """The index of the stage before which rows are kept raw, for held-out rows and the
        evaluation; None if neither needs them."""
        evaluates = self.pipeline.trains and bool(self.model.evaluation.needed)
        keeps = self.model.holdout is not None or evaluates
        return self.scrub.export_from if keeps else None

    @cached_property
    def service_settings(self) -> Service.Settings:
        """The settings of [service]."""
        table = self.pipeline.service or {}
        return self.pipeline.settings(Service.Settings, table, "service")

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """The heartbeat behind /livez."""
        return Heartbeat(self.service_settings.stall_timeout, metrics=self.metrics)

    @cached_property
    def service(self) -> Service:
        """The HTTP service: metrics and health."""
        settings, heartbeat = self.service_settings, self.heartbeat
        return Service(self.metrics, settings, live=heartbeat.health, ready=self._readiness)

    @property
    def bound_stages(self) -> BoundStages:
        """The bound stages, and the features of a model in training."""
        return _bound_stages(self.pipeline, self.scrub, self.model)

    def other_stages(self, tables: Mapping[str, Any]) -> BoundStages:
        """Bind other tables of [scrub] to the same columns of the same source."""
        pipeline = self.pipeline.model_copy(update={"scrub": tables})
        scrub = Scrub(pipeline, self.endpoints, self.served)
        scrub.source_schema = self.scrub.source_schema
        model = Model(
            pipeline,
            self.endpoints,
            scrub,
            inferred_classes=lambda: self.model.label.inferred_classes,
        )
        return _bound_stages(pipeline, scrub, model)

    def _readiness(self) -> Health:
        """Return the health for /readyz: alive, and the source can give records."""
        health, source = self.heartbeat.health(), self.endpoints.source
        if health.ok and isinstance(source, SharedSource):
            reason = source.unavailable_reason()
            return health if reason is None else Health(False, reason)
        return health


def _bound_stages(pipeline: Pipeline, scrub: Scrub, model: Model) -> BoundStages:
    features = model.features if pipeline.trains else None
    return BoundStages(stages=scrub.stages, features=features)


def _prediction_columns(features: Features) -> Schema:
    """Return the columns that a model of these features adds."""
    scores = np.empty((0, features.outputs) if features.task == "multiclass" else 0)
    return {column.name: column.dtype for column in features.prediction_columns(scores)}


__all__ = ["Parts"]
