"""The learner with its features, augmentation, evaluation and held-out rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine import calls
from engine.assembly.endpoints import Endpoints
from engine.assembly.label import Label
from engine.assembly.scrub import Scrub
from engine.config import (
    ExportSettings,
    ModelSettings,
    Pipeline,
    key_location,
    load_class,
    suggestion,
    validate,
)
from engine.loading.nested_tensors import nested_features
from engine.quality.evaluation import Evaluation
from engine.quality.threshold import Threshold
from engine.running.holdout import Holdout
from engine.scrub.columns import expand_columns
from engine.types import PART, Features, Learner, UserError, nearest
from engine.types.contract_checks import require_contract

if TYPE_CHECKING:
    from models.augment import Augmentation
    from models.compress.gate import Compression

log = logging.getLogger("headrace.run")


class Model:
    """Builds what [model], [train], [augment] and [evaluation] describe, on first use.

    Args:
        inferred_classes: see `engine.assembly.label.Label`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        endpoints: Endpoints,
        scrub: Scrub,
        *,
        inferred_classes: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._endpoints = endpoints
        self._scrub = scrub
        self._infer_classes = inferred_classes

    @cached_property
    def learner_class(self) -> type[Any]:
        """The class that [model] kind names."""
        from models import LEARNERS

        kind = (self._pipeline.model or {}).get("kind", "tabular")
        learner_class = load_class(kind, LEARNERS, "model")
        require_contract(learner_class, Learner, "model", ("Settings", "Training"))
        return learner_class

    @cached_property
    def common_settings(self) -> ModelSettings:
        """The keys of [model] that every learner shares.

        Raises: UserError for an unknown key.
        """
        common, own = self._tables
        known = self.learner_class.Settings.model_fields
        for key in own:
            if key not in known:
                raise UserError(
                    f"{key_location(self._pipeline.file, 'model', key)} has no key '{key}'."
                    f"{suggestion(key, [*ModelSettings.model_fields, *known], 'model')}"
                )
        return validate(ModelSettings, common, "model", self._pipeline.file)

    @cached_property
    def training(self) -> Any:
        """The settings of [train], of the learner's own class."""
        table = {k: v for k, v in (self._pipeline.train or {}).items() if k != "sampling"}
        return validate(self.learner_class.Training, table, "train", self._pipeline.file)

    @property
    def forget_on(self) -> str:
        """[train] forget_on; "never" for a learner without it."""
        from models.challenge.challenger import ChallengeSettings

        training = self.training
        return training.forget_on if isinstance(training, ChallengeSettings) else "never"

    @cached_property
    def label(self) -> Label:
        """The column to predict, the task and the classes."""
        return Label(
            self.common_settings,
            self._endpoints,
            self._scrub,
            file=self._pipeline.file,
            inferred_classes=self._infer_classes,
        )

    @cached_property
    def features(self) -> Features:
        """The columns the model reads, globs expanded.

        Raises: UserError for a column that is missing or cannot be a feature.
        """
        model, schema, stages = self.common_settings, self._scrub.schema, self._scrub.stages
        sizes = self._vocabulary_sizes()
        for column in model.categories:
            if column not in sizes:
                raise UserError(
                    f"No [scrub] stage of kind 'categories' encodes [model] category '{column}'."
                    f"{nearest(column, sizes)}"
                )
        task, classes = self.label.task, self.label.classes
        numeric = (
            expand_columns(model.numeric, schema, where="[model] numeric") if model.numeric else ()
        )
        threshold = model.threshold_settings.value
        features = Features(
            numeric=numeric,
            categories={column: sizes[column] for column in model.categories},
            target=model.target,
            task=task,
            classes=classes,
            scaled=tuple(c for stage in stages for c in stage.scaled),
            threshold=0.5 if threshold is None else threshold,
            probabilities=self._pipeline.writes_probabilities,
            **nested_features(model, schema, sizes),
        )
        self._require_learnable(features)
        return features

    @cached_property
    def augmentation(self) -> Augmentation | None:
        """The augments of [augment]; None without any.

        Raises: UserError for a wrong setting.
        """
        pipeline = self._pipeline
        if not pipeline.augment:
            return None
        from models.augment import AUGMENTS, Augment, Augmentation

        augments = []
        for name, table in pipeline.augment.items():
            own, section = dict(table), f"augment.{name}"
            augment_class = load_class(own.pop("kind", name), AUGMENTS, section, pipeline.file)
            require_contract(augment_class, Augment, section)
            settings = pipeline.settings(augment_class.Settings, own, section)
            augments.append(calls.construct(section, augment_class, Augment, name, settings))
        return Augmentation(augments)

    @cached_property
    def learner(self) -> Learner:
        """The learner, augmented, and wrapped for sampling and for challenges.

        Raises: UserError for a wrong setting.
        """
        file, learner_class = self._pipeline.file, self.learner_class
        settings = validate(learner_class.Settings, self._tables[1], "model", file)
        learner: Learner = calls.construct(
            "model", learner_class, Learner, settings, self.training, self.features
        )
        if self.augmentation is not None:
            self.augmentation.attach(learner, self._encoders())
        from models.challenge.challenger import (
            Challengeable,
            ChampionChallenger,
            require_challengeable,
        )
        from models.learners.sampling import ResampledLearner, SamplingSettings

        challenged, sampling = self.forget_on, (self._pipeline.train or {}).get("sampling")
        if challenged != "never":
            names = [stage.name for stage in self._scrub.stages]
            require_challengeable(learner, challenged, names)
        if sampling is not None:
            sampling_settings = validate(SamplingSettings, sampling, "train.sampling", file)
            learner = ResampledLearner(learner, sampling_settings)
        if challenged == "never":
            return learner
        assert isinstance(learner, Challengeable), "require_challengeable checks this"
        return ChampionChallenger(learner, challenged)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation beside its baselines.

        Raises: UserError for a column that is missing or was scaled.
        """
        scrub, table = self._scrub, dict(self._pipeline.evaluation or {})
        if PART in scrub.schema:  # each part is reported as a slice
            parts = {part: f"{PART} = '{part}'" for part in ("train", "validation", "test")}
            table["slices"] = {**parts, **table.get("slices", {})}
        settings = self._pipeline.settings(Evaluation.Settings, table, "evaluation")
        evaluation = Evaluation(settings, self.features)
        # Columns are read as they are before the stages inside a model file: unscaled.
        evaluation.bind({**scrub.schema, **scrub.export_schema})
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
            if not self.common_settings.threshold_settings.is_chosen:
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
            ignored={*unread, *self._endpoints.source.origin_columns()},
            by_content=not stateful,
            needed=[column for column in scrub.export_schema if column in learned],
        )

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
        return Threshold(self.common_settings.threshold_settings, rows)

    @property
    def _tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keys of [model]: those every learner shares, and the learner's own."""
        table = self._pipeline.model or {}
        common = {key: value for key, value in table.items() if key in ModelSettings.model_fields}
        return common, {key: value for key, value in table.items() if key not in common}

    def _vocabulary_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for stage in self._scrub.stages:
            sizes |= stage.vocabulary_sizes()
        return sizes

    def _encoders(self) -> dict[str, Any]:
        encoders: dict[str, Any] = {}
        for stage in self._scrub.stages:
            encoders |= stage.encoders()
        return encoders

    def _require_learnable(self, features: Features) -> None:
        if features.target in (*features.numeric, *features.categories, *features.nested):
            raise UserError(
                f"[model] in {self._pipeline.file} reads its target '{features.target}' as a "
                "feature, which is unknown when it predicts: take it out of the features."
            )
        if features.nested and self._pipeline.export is not None:
            raise UserError(
                f"[export] in {self._pipeline.file} writes models of numbers and categories, and "
                f"[model] reads images or lists ('{features.nested[0]}'): take [export] out."
            )

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


__all__ = ["Model"]
