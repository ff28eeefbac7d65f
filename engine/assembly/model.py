"""The learner with its settings, features and augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from engine.assembly.endpoints import Endpoints
from engine.assembly.label import Label
from engine.assembly.learner import make_augmentation, wrapped
from engine.assembly.scrub import Scrub
from engine.columnar.event_time import bound_idle
from engine.config import (
    GrowSettings,
    ModelSettings,
    Pipeline,
    key_location,
    load_class,
    suggestion,
    validate,
)
from engine.loading.feature_columns import network_features, tabular_features
from engine.running.classes.class_table import ClassRules
from engine.scrub.columns import expand_columns
from engine.types import Features, KeyedState, Learner, UserError
from engine.user_code import calls
from engine.user_code.contract_checks import require_contract

if TYPE_CHECKING:
    import torch

    from models.augment import Augmentation

MODULE_KEYS = {"module", "inputs", "head", "state"}
"""Keys of [model] that make its kind 'module' where no kind is given."""
LONGEST = 1 << 61
"""Ticks or rows that nothing is longer than."""


class Model:
    """Builds what [model], [train] and [augment] describe, on first use.

    Args:
        module: a `torch.nn.Module` in place of [model] module.
        inferred_classes: see `engine.assembly.label.Label`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        endpoints: Endpoints,
        scrub: Scrub,
        *,
        module: torch.nn.Module | None = None,
        inferred_classes: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._endpoints = endpoints
        self._scrub = scrub
        self._module = module
        self._infer_classes = inferred_classes

    @cached_property
    def learner_class(self) -> type[Any]:
        """The class that [model] kind names; by default `tabular`, or `module` where a key of it is
        given."""
        from models import LEARNERS

        table = self._own_keys
        default = "module" if MODULE_KEYS & table.keys() else "tabular"
        kind = (self._pipeline.model or {}).get("kind", default)
        learner_class = load_class(kind, LEARNERS, "model")
        require_contract(learner_class, Learner, "model", ("Settings", "Training"))
        return learner_class

    @cached_property
    def common_settings(self) -> ModelSettings:
        """The keys of [model] that every learner shares.

        Raises: UserError for an unknown key.
        """
        known = self.learner_class.Settings.model_fields
        for key in self._own_keys:
            if key not in known:
                raise UserError(
                    f"{key_location(self._pipeline.file, 'model', key)} has no key '{key}'."
                    f"{suggestion(key, [*ModelSettings.model_fields, *known], 'model')}"
                )
        table = self._pipeline.model or {}
        common = {key: value for key, value in table.items() if key in ModelSettings.model_fields}
        return validate(ModelSettings, common, "model", self._pipeline.file)

    @cached_property
    def settings(self) -> Any:
        """The learner's own keys of [model].

        Raises: UserError for a wrong setting.
        """
        _ = self.common_settings  # an unknown key comes before a wrong value
        settings_class = self.learner_class.Settings
        return validate(settings_class, self._own_keys, "model", self._pipeline.file)

    @cached_property
    def input_columns(self) -> tuple[str, ...]:
        """Columns that the model reads although [model] does not name them: a network asks for
        its inputs."""
        if not self._pipeline.trains or not self.learner_class.reads_inputs:
            return ()
        named = self.learner_class.named_inputs(self.settings)
        return tuple(name for name, columns in named.items() if columns is None)

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
            grows=self._grows,
            only_regression=lambda: self.learner_class.only_regression(self.training),
            inferred_classes=self._infer_classes,
        )

    @cached_property
    def _grows(self) -> bool:
        """Whether classes appear while the model learns.

        Raises: UserError if the learner cannot learn them.
        """
        model, learner_class, file = self.common_settings, self.learner_class, self._pipeline.file
        always = learner_class.grows == "always" and model.task in (None, "multiclass")
        grows = model.classes == "grow" or (always and not model.classes)
        if grows and learner_class.grows == "never":
            raise UserError(
                f"[model] classes in {file} is 'grow', and kind = '{model.kind}' needs to know its "
                "classes: name them, or use kind = 'tabular' or 'prototypes'."
            )
        if grows and self._pipeline.writes_probabilities:
            raise UserError(
                f"[sink] probabilities in {file} is a column for each class, and new classes may "
                "appear: name them in [model] classes, or take probabilities out."
            )
        if not grows and (given := {"max_classes", "grow"} & model.model_fields_set):
            raise UserError(
                f"[model] {min(given)} in {file} is for classes that appear while the model "
                "learns, and these are known: take it out."
            )
        return grows

    @cached_property
    def features(self) -> Features:
        """The columns the model reads, globs expanded.

        Raises: UserError for a column that is missing or cannot be a feature.
        """
        model, schema, stages = self.common_settings, self._scrub.schema, self._scrub.stages
        sizes = self._scrub.vocabulary_sizes
        if self.learner_class.reads_inputs:
            named = self.learner_class.named_inputs(self.settings)
            columns = network_features(named, model, schema, sizes)
        else:
            columns = tabular_features(model, schema, sizes)
        task, classes = self.label.task, self.label.classes
        threshold = model.threshold_settings.value
        numbers = task == "regression"
        quantiles = calls.quantiles(self.learner_class, self.training) if numbers else ()
        one = calls.quantile(self.learner_class, self.training) if numbers else None
        features = Features(
            target=None if len(model.targets) > 1 else model.targets[0],
            targets=model.targets if len(model.targets) > 1 else (),
            task=task,
            classes=classes,
            max_classes=model.max_classes if self._grows else 0,
            scaled=tuple(c for stage in stages for c in stage.scaled),
            moving=tuple(c for stage in stages for c in stage.moving),
            lowest_label=self.learner_class.lowest_label(self.settings, self.training),
            deviance_power=self.learner_class.deviance_power(self.training),
            quantiles=quantiles,
            quantile=None if quantiles else one,
            vector_width=0 if numbers else self._vector_width(),
            threshold=0.5 if threshold is None else threshold,
            probabilities=self._pipeline.writes_probabilities,
            state=self._keyed_state(),
            **columns,
        )
        self._require_learnable(features)
        return features

    @cached_property
    def class_rules(self) -> ClassRules | None:
        """When a label is a class, where they appear while the model learns; else None.

        Raises: UserError if [model.grow] does not fit the columns.
        """
        if not self._grows:
            return None
        model = self.common_settings
        grow, schema = model.grow or GrowSettings(), self._scrub.export_schema
        columns = {**self._scrub.learned_schema, **schema}
        time, idle = bound_idle(grow.idle, grow.time, columns, "[model.grow]")
        return ClassRules(
            most=model.max_classes,
            min_count=grow.min_count,
            idle=None if idle is None else min(idle, LONGEST),
            time=time,
        )

    @cached_property
    def augmentation(self) -> Augmentation | None:
        """The augments of [augment]; None without any.

        Raises: UserError for a wrong setting.
        """
        return make_augmentation(self._pipeline)

    @cached_property
    def learner(self) -> Learner:
        """The learner, augmented, and wrapped for sampling and for challenges.

        Raises: UserError for a wrong setting.
        """
        learner: Learner = calls.construct(
            "model", self.learner_class, Learner, self.settings, self.training, self.features
        )
        if self.augmentation is not None:
            self.augmentation.attach(learner, self._scrub.encoders)
        return wrapped(
            learner,
            self._pipeline,
            challenged=self.forget_on,
            stages=[stage.name for stage in self._scrub.stages],
            grows=self._grows,
        )

    @property
    def _own_keys(self) -> dict[str, Any]:
        """The keys of [model] that not every learner shares."""
        table = self._pipeline.model or {}
        own = {key: value for key, value in table.items() if key not in ModelSettings.model_fields}
        if self._module is None:
            return own
        if (named := own.get("module")) is not None:
            raise UserError(
                f"[model] module in {self._pipeline.file} is '{named}', and Run was given a "
                "module: take one of them out."
            )
        return {**own, "module": self._module}

    def _vector_width(self) -> int:
        return calls.vector_width(self.learner_class, self.settings, self.training)

    def _keyed_state(self) -> KeyedState | None:
        """Return the state that the model carries per key, its columns expanded."""
        schema = self._scrub.export_schema
        named: KeyedState | None = self.learner_class.named_state(self.settings, schema)
        if named is None:
            return None
        by = expand_columns(named.by, schema, where="[model.state] by")
        return dataclasses.replace(named, by=by)

    def _require_learnable(self, features: Features) -> None:
        read = {*features.numeric, *features.categories, *features.nested}
        if features.targets and not self.learner_class.predicts_several:
            raise UserError(
                f"[model] target in {self._pipeline.file} names {len(features.targets)} columns, "
                f"and kind = '{self.common_settings.kind}' predicts one: name one, or use kind = "
                "'tabular' or 'module'."
            )
        if features.targets and features.quantiles:
            raise UserError(
                f"[train] quantiles in {self._pipeline.file} are of one target, and [model] target "
                f"names {len(features.targets)}: name one, or take quantiles out."
            )
        for target in features.labels:
            if features.state is not None and target in features.state.columns:
                key = "by" if target in features.state.by else "time"
                raise UserError(
                    f"[model.state] {key} in {self._pipeline.file} names the target '{target}', "
                    "which is unknown when it predicts: name another column."
                )
            if target in read:
                raise UserError(
                    f"[model] in {self._pipeline.file} reads its target '{target}' as a feature, "
                    "which is unknown when it predicts: take it out of the features."
                )


__all__ = ["Model"]
