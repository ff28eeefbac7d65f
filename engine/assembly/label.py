"""The label of a model: its column, the task and the classes, given or inferred."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from functools import cached_property

import polars as pl

from engine.assembly.endpoints import Endpoints
from engine.assembly.scrub import Scrub
from engine.config import ModelSettings
from engine.running import labels
from engine.scrub.side_source import sides_of
from engine.types import (
    DROPPED,
    WILDCARD,
    HeadraceError,
    SharedSource,
    Source,
    UserError,
    require,
    type_name,
)

log = logging.getLogger("headrace.run")


class Label:
    """Resolves [model] target, task and classes on first use.

    Attributes:
        columns: of the label; several of a regression.
        column: the first of them.

    Args:
        file: the pipeline file, for error messages.
        only_regression: returns whether the learner is set to predict numbers, by its loss.
        grows: whether classes appear while the model learns, so that none are known yet.
        inferred_classes: returns classes inferred before; reads rows if not given.
    """

    def __init__(
        self,
        model: ModelSettings,
        endpoints: Endpoints,
        scrub: Scrub,
        *,
        file: str,
        grows: bool = False,
        only_regression: Callable[[], bool] = lambda: False,
        inferred_classes: Callable[[], tuple[str, ...]] | None = None,
    ) -> None:
        self.columns = model.targets
        self.column = self.columns[0]
        self._model = model
        self._endpoints = endpoints
        self._scrub = scrub
        self._file = file
        self._grows = grows
        self._only_regression = only_regression
        self._infer = inferred_classes or self._infer_classes

    @cached_property
    def task(self) -> str:
        """The task: given, or by the type of the column.

        Raises: UserError if the task cannot predict the column.
        """
        model = self._model
        require(self._scrub.schema, self.columns, where="[model] target")
        if len(self.columns) > 1:
            return self._several()
        dtype = self._scrub.schema[self.column]
        given, where = self._given_task, f"[model] task in {self._file}"
        if given == "regression" and not dtype.is_numeric():
            if not model.task:
                raise UserError(
                    f"[train] loss in {self._file} is that of a regression, which expects numbers "
                    f"in target '{self.column}', got {type_name(dtype)}: declare its type in "
                    "[source.schema] if its values are missing, or choose a loss of classes."
                )
            raise UserError(
                f"{where} is 'regression', which expects numbers in target '{self.column}', "
                f"got {type_name(dtype)}: for classes, set task to 'binary' or 'multiclass'."
            )
        odd = dtype.is_nested() or dtype.is_temporal() or dtype == pl.Binary
        if given != "regression" and odd:
            raise UserError(
                f"{where} is '{given or 'binary'}', which expects text, numbers or true and false "
                f"in target '{self.column}', got {type_name(dtype)}."
            )
        if self._grows:
            return self._growing_task(dtype)
        task = given or labels.task_of(dtype, len(model.given_classes or self.inferred_classes))
        if task == "regression" and model.classes:
            raise UserError(
                f"{where} is 'regression', and [model] classes are given: set task to "
                "'binary' or 'multiclass', or take classes out."
            )
        if task != "binary" and model.threshold is not None:
            raise UserError(f"[model] threshold in {self._file} is for task binary, got '{task}'.")
        return task

    @cached_property
    def _given_task(self) -> str | None:
        """The task that [model] or the loss says; None where the type of the column does."""
        if self._model.task or self._grows:
            return self._model.task
        return "regression" if self._only_regression() else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes: given, those of the resumed run, or inferred; empty for a regression, and
        where they appear while the model learns.

        Raises: UserError if they do not fit the task.
        """
        if self.task == "regression" or self._grows:
            return ()
        given = self._model.given_classes
        if not given:
            return self.inferred_classes
        wanted = 2 if self.task == "binary" else len(given)
        if len(given) != wanted or len(set(given)) < max(wanted, 2):
            raise UserError(
                f"[model] task in {self._file} is '{self.task}', which expects "
                f"{'two' if self.task == 'binary' else 'two or more'} different [model] classes, "
                f"got {json.dumps(list(given))}."
            )
        return given

    def _several(self) -> str:
        """Return the task of several targets."""
        model, where = self._model, f"[model] target in {self._file}"
        if model.task not in (None, "regression") or model.classes:
            raise UserError(
                f"{where} names {len(self.columns)} columns, which are predicted together as "
                "numbers, and [model] asks for classes: name one, or take task and classes out."
            )
        for column in self.columns:
            if not (dtype := self._scrub.schema[column]).is_numeric():
                raise UserError(
                    f"{where} names {len(self.columns)} columns, which are predicted together as "
                    f"numbers, and '{column}' is {type_name(dtype)}: name columns of numbers."
                )
        if model.threshold is not None:
            raise UserError(
                f"[model] threshold in {self._file} is for task binary, got 'regression'."
            )
        return "regression"

    def _growing_task(self, dtype: pl.DataType) -> str:
        model, where = self._model, f"[model] task in {self._file}"
        if model.task not in (None, "multiclass"):
            raise UserError(
                f"{where} is '{model.task}', and classes that appear while the model learns are "
                "for 'multiclass': name the classes, or take task out."
            )
        if model.task is None and (dtype.is_float() or dtype.is_decimal()):
            raise UserError(
                f"[model] in {self._file} learns classes, and target '{self.column}' holds "
                f"fractions ({type_name(dtype)}): where its numbers are classes, set task to "
                "'multiclass'."
            )
        if model.threshold is not None:
            raise UserError(
                f"[model] threshold in {self._file} is for task binary, got 'multiclass'."
            )
        return "multiclass"

    @cached_property
    def inferred_classes(self) -> tuple[str, ...]:
        """The classes that the file leaves out; empty if the type of the column needs none.

        Raises: UserError if they cannot be inferred.
        """
        return self._infer()

    def _infer_classes(self) -> tuple[str, ...]:
        model, dtype, source = self._model, self._scrub.schema[self.column], self._source
        if dtype == pl.Boolean:
            return labels.BOOLS
        if model.task is None and dtype.is_numeric():
            return ()
        if self._endpoints.resumed_schema.classes:
            return tuple(self._endpoints.resumed_schema.classes)
        if not source.can_be_reread():
            raise UserError(
                f"[model] in {self._file} leaves out classes, and what the source gives can be "
                'read only once: name them, as in classes = ["no", "yes"].'
            )
        seen = self._look()
        if source.unbounded():
            raise UserError(
                f"[model] in {self._file} leaves out classes, and the source has no end, so other "
                f"labels may come: name them; {seen.words(self.column)}."
            )
        task = model.task or labels.task_of(dtype, len(seen.values))
        where = f"[model] in {self._file}"
        classes = labels.require_classes(seen, task, self.column, where)
        names = json.dumps(list(classes))
        log.info("[model] classes are %s: the labels of %s", names, seen.where)
        return classes

    @property
    def is_left_to_type(self) -> bool:
        """Whether the task is regression only because the column holds numbers."""
        return not self._given_task and self.task == "regression" and len(self.columns) == 1

    def log_hint(self) -> None:
        """Log a warning if the task is inferred and the first labels look like classes."""
        source = self._source
        readable = not (self._endpoints.replay or source.unbounded()) and source.can_be_reread()
        if not (self.is_left_to_type and readable):
            return
        try:  # without the stages: a mere hint should not run user code
            seen = self._look(labels.READ_ROWS, staged=False)
        except (HeadraceError, OSError, KeyError):
            return  # the run itself reports it
        hint = labels.few_numbers(seen.values, self.column, seen.where)
        if hint is not None:
            log.warning("%s", hint)

    @property
    def _source(self) -> Source:
        """The source that the labels come from."""
        labelled = self._endpoints.labelled
        return self._endpoints.source if labelled is None else labelled.labels

    def _look(self, most: int = labels.ROWS, *, staged: bool = True) -> labels.Labels:
        """Read labels through a second source and stages; those of the run stay unchanged."""
        scrub, own, labelled = self._scrub, self._endpoints.source, self._endpoints.labelled
        if labelled is not None:
            schema = {self.column: labelled.label_schema[self.column]}
            with contextlib.closing(self._endpoints.another_label_source()) as source:
                source.schema({**labelled.label_schema, WILDCARD: DROPPED})
                return labels.look(source, schema, [], self.column, most)
        if isinstance(own, SharedSource) and own.shares_partitions:
            return labels.Labels(values=(), rows=0, whole=False)  # a reader would rebalance it
        stages = scrub.another_chain() if staged else []
        target = self.column
        read = scrub.read_schema if staged else {target: scrub.source_schema[target]}
        with contextlib.closing(self._endpoints.another_source()) as source:
            source.restore_schema_state(own.schema_state())  # infers and logs them once only
            source.schema({**scrub.source_schema, WILDCARD: DROPPED})
            try:
                return labels.look(source, read, stages, target, most)
            finally:
                for side in sides_of(stages).values():
                    side.close()


__all__ = ["Label"]
