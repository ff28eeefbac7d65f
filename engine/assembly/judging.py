"""How a model is judged: its evaluation, the held-out rows, and what is decided by them."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

from engine.assembly.endpoints import Endpoints
from engine.assembly.model import Model
from engine.assembly.scrub import Scrub
from engine.config import ExportSettings, Pipeline
from engine.quality.evaluation import Evaluation
from engine.quality.threshold import Threshold
from engine.running.holdout import Holdout
from engine.types import PART, UserError

if TYPE_CHECKING:
    from models.compress.gate import Compression

log = logging.getLogger("headrace.run")


class Judging:
    """Builds what [evaluation], [export] and [model] threshold describe, on first use."""

    def __init__(
        self, pipeline: Pipeline, endpoints: Endpoints, scrub: Scrub, model: Model
    ) -> None:
        self._pipeline = pipeline
        self._endpoints = endpoints
        self._scrub = scrub
        self._model = model

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation beside its baselines.

        Raises: UserError for a column that is missing or was scaled.
        """
        scrub, model, table = self._scrub, self._model, dict(self._pipeline.evaluation or {})
        if PART in scrub.schema:  # each part is reported as a slice
            parts = {part: f"{PART} = '{part}'" for part in ("train", "validation", "test")}
            table["slices"] = {**parts, **table.get("slices", {})}
        settings = self._pipeline.settings(Evaluation.Settings, table, "evaluation")
        evaluation = Evaluation(settings, model.features, model.learner_class.baselines)
        # Columns are read as they are before the stages inside a model file: unscaled.
        evaluation.bind({**scrub.learned_schema, **scrub.export_schema})
        self._require_unscaled(evaluation)
        return evaluation

    @cached_property
    def holdout(self) -> Holdout | None:
        """The held-out rows, to evaluate compressed models and choose a threshold; None if the
        pipeline does neither."""
        scrub, export = self._scrub, self._pipeline.export
        if not self._pipeline.trains:
            return None
        if export is None:
            if not self._model.common_settings.threshold_settings.is_chosen:
                return None
            export = ExportSettings()
        outside = scrub.stages[: scrub.export_from]
        stateful = [stage.name for stage in outside if stage.snapshot() is not None]
        if stateful:
            log.info(
                "Rows are held out by partition and position, not by content: no model file can "
                "hold the state of [scrub.%s]. Of two equal rows one may be learned and the other "
                "held out.",
                "] and [scrub.".join(stateful),
            )
        unread = scrub.unread_columns
        learned = scrub.source_schema.keys() - unread
        return Holdout(
            export.holdout,
            export.holdout_rows,
            # A row that is learned again with another label stays on its side.
            ignored={*unread, *self._endpoints.source.origin_columns(), *self._late_target},
            by_content=not stateful,
            needed=[column for column in scrub.export_schema if column in learned],
        )

    @property
    def _late_target(self) -> tuple[str, ...]:
        labelled = self._endpoints.labelled
        return () if labelled is None else (labelled.target,)

    @cached_property
    def compression(self) -> Compression | None:
        """The settings of [export.compress]; None without compression.

        Raises: UserError for a wrong setting.
        """
        export = self._pipeline.export
        if export is None or export.compress is None:
            return None
        from models.compress.gate import Compression

        return self._pipeline.settings(Compression, export.compress, "export.compress")

    @cached_property
    def threshold(self) -> Threshold:
        """The decision threshold of two classes."""
        rows = 0 if self.holdout is None else self.holdout.rows
        return Threshold(self._model.common_settings.threshold_settings, rows)

    def _require_unscaled(self, evaluation: Evaluation) -> None:
        stages, export_from = self._scrub.stages, self._scrub.export_from
        for stage in stages[:export_from]:
            for column in evaluation.needed:
                if column in stage.scaled:
                    raise UserError(
                        f"[evaluation] in {self._pipeline.file} reads column '{column}', which "
                        f"[scrub.{stage.name}] has scaled: put [scrub.{stage.name}] "
                        f"after [scrub.{stages[export_from - 1].name}], or read a copy that "
                        "a 'derive' stage makes before it."
                    )


__all__ = ["Judging"]
