"""The model file of a pipeline that serves."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from engine.config import Pipeline

if TYPE_CHECKING:
    from models.serving.predictor import OnnxPredictor

log = logging.getLogger("headrace.run")


class Served:
    """The model of [infer], loaded on first use."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @cached_property
    def predictor(self) -> OnnxPredictor | None:
        """The model; None if the pipeline does not serve.

        Raises: UserError for a file that is no headrace model, or a wrong setting.
        """
        pipeline = self._pipeline
        if pipeline.infer is None:
            return None
        from models.serving.predictor import OnnxPredictor

        settings = pipeline.settings(OnnxPredictor.Settings, pipeline.infer, "infer")
        predictor = OnnxPredictor(settings)
        probabilities = pipeline.writes_probabilities
        predictor.features = replace(predictor.features, probabilities=probabilities)
        missing = [f"[scrub.{name}]" for name in predictor.before if name not in pipeline.scrub]
        if missing:
            log.warning(
                "%s was trained after %s, which no model file can contain: pass it rows that these "
                "stages have processed, or add the stages to this pipeline.",
                settings.model,
                " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1]))),
            )
        return predictor

    @property
    def exported_stages(self) -> tuple[str, ...]:
        """The names of the stages inside the model file."""
        return () if self.predictor is None else self.predictor.stages

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns the model reads."""
        return () if self.predictor is None else self.predictor.requires

    @property
    def provenance(self) -> dict[str, str]:
        """The headers of every record, for sinks that write headers."""
        headers = {"headrace.pipeline": self._pipeline.name}
        if self.predictor is not None:
            headers["headrace.model"] = self.predictor.info()["version"]
        return headers


__all__ = ["Served"]
