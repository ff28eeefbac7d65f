"""The model file of a pipeline that serves, or the versions of it that it follows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel

from engine.config import Pipeline
from engine.observing.metrics import Metrics
from engine.types import Learner, Predictor, Schema, Stage, UserError, type_name
from engine.types.changes import neutral_keys
from engine.types.toml import toml_value

if TYPE_CHECKING:
    from engine.versions.swapping import SwappingPredictor
    from models.serving.predictor import Network
    from models.serving.settings import InferSettings

log = logging.getLogger("headrace.run")
FOLDER_KEYS = frozenset(("poll_interval", "max_slowdown", "shadow", "canary", "canary_by"))
"""The keys of [infer] that only a folder of versions has a use for."""
FILE = "digest of its file"
TABLE = "table"
"""Names the table of a stage among its settings in a model file."""
LONGEST_TABLE = 400
"""The characters of a stage's settings beyond which a sentence leaves them out."""


class LoadedModel:
    """The model of [infer], loaded on first use."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._swapping: SwappingPredictor | None = None

    @cached_property
    def predictor(self) -> Predictor | None:
        """The model; None if the pipeline does not serve.

        Raises: UserError for a file that cannot be served, or a wrong setting.
        """
        pipeline = self._pipeline
        if pipeline.infer is None:
            return None
        from models.serving.settings import InferSettings

        settings = pipeline.settings(InferSettings, pipeline.infer, "infer")
        predictor = self._opened(settings)
        if missing := self._missing_stages(predictor):
            log.warning(
                "%s was trained after %s, which it does not contain: %s.",
                settings.model, missing, self._what_to_do(predictor),
            )  # fmt: skip
        return predictor

    def _missing_stages(self, predictor: Predictor) -> str:
        """Return the stages that the model was trained behind and this pipeline lacks, as words."""
        names = [f"[scrub.{n}]" for n in predictor.before if n not in self._pipeline.scrub]
        return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))

    def _what_to_do(self, predictor: Predictor) -> str:
        """Return what brings the missing stages back, as the end of a sentence."""

        names = [name for name in predictor.before if name not in self._pipeline.scrub]
        given = {name: predictor.before_settings.get(name, {}).get(TABLE) for name in names}
        tables = [f"[scrub] {name} = {toml_value(table)}" for name, table in given.items() if table]
        tables = [table for table in tables if len(table) <= LONGEST_TABLE]
        shown = f", by {' and '.join(tables)}" if tables else ""
        stages = "it" if len(names) == 1 else "them"
        return (
            f"add {stages} to a pipeline with [infer], as in the training{shown}, or pass rows "
            f"that went through {stages}"
        )

    def require_processed(self, schema: Schema, declared: Schema) -> None:
        """Check that no column is as it was before a stage that is missing here: text of which the
        model learned lists, or numbers that the stage made; or not there at all.

        Args:
            schema: the columns of the source, as they are found.
            declared: those whose type the user says.

        Raises: UserError
        """
        predictor = self.predictor
        if predictor is None or not (missing := self._missing_stages(predictor)):
            return
        own = self._pipeline.scrub.keys() - predictor.stages  # may make the columns themselves
        absent = [] if own else [predictor.before_settings.get(n, {}) for n in predictor.before]
        read = () if own else predictor.columns_read(schema)
        for column, dtype in predictor.columns.items():
            got = schema.get(column)
            if got is None:
                wrong, found = column in read, "does not have it"
            else:
                unlike = got == pl.String() and dtype.is_numeric() and column not in declared
                wrong = dtype.is_nested() and not got.is_nested()
                wrong |= unlike and any(_names(settings, column) for settings in absent)
                found = f"has it as {type_name(got)}"
            if wrong:
                raise UserError(
                    f"The model of [infer] learned column '{column}' as {type_name(dtype)}, as "
                    f"{missing} left it, and the source {found}: {self._what_to_do(predictor)}."
                )

    def log_cold(self, stages: Iterable[Stage]) -> None:
        """Say which of these stages, whose state begins empty, the model was trained behind."""
        before = () if self.predictor is None else self.predictor.before
        cold = [stage.where for stage in stages if stage.name in before]
        if cold:
            log.warning(
                "%s: no row is known yet, and the model of [infer] was trained behind rows that "
                "were: the first answers of each key are those of a row without a past.",
                ", ".join(cold),
            )

    def _opened(self, settings: InferSettings) -> Predictor:
        """Return the predictor of a file, or of a folder of versions."""
        from engine.versions.store import Versions
        from models.serving.opening import open_model

        def opened(path: Path, threads: int | None) -> Predictor:
            changes = {"model": str(path), "threads": threads}
            return open_model(
                settings.model_copy(update=changes),
                self._pipeline.settings,
                probabilities=self._pipeline.writes_probabilities,
                network=trusted_network(settings.module),
            )

        path = Path(settings.model)
        versions = Versions.named(path)
        if versions is None:
            for key in sorted(FOLDER_KEYS & settings.model_fields_set):
                raise UserError(
                    f"[infer] {key} is for a folder of versions, and model '{path}' is a file: "
                    "take it out, or name the folder."
                )
            return opened(path, settings.threads)
        from engine.versions.canary import Canary
        from engine.versions.swapping import SwappingPredictor

        self._swapping = SwappingPredictor(
            versions,
            opened,
            poll=settings.poll_interval,
            threads=settings.threads,
            max_slowdown=settings.max_slowdown,
            shadow=settings.shadow,
            canary=Canary(settings.canary, settings.canary_by) if settings.canary else None,
        )
        return self._swapping

    @property
    def follows_versions(self) -> bool:
        """Whether it serves the versions of a folder, one after the other."""
        return self.predictor is not None and self._swapping is not None

    def watched(self, metrics: Metrics) -> AbstractContextManager[None]:
        """Follow the versions, if it serves those of a folder, while the block runs."""
        if self.predictor is None or self._swapping is None:
            return contextlib.nullcontext()
        return self._swapping.watched(metrics)

    def require_trained_behind(self, stages: Iterable[Stage]) -> None:
        """Raises: UserError if a stage that the model was trained behind has other settings here,
        which would change its answers."""
        if self.predictor is None:
            return
        for stage in stages:
            trained = self.predictor.before_settings.get(stage.name)
            if not trained:  # and a file's digest costs a read of it
                continue
            here = result_settings(stage)
            for key in sorted(trained.keys() & here.keys()):
                if trained[key] == here[key]:
                    continue
                if key == FILE and None in (trained[key], here[key]):
                    continue  # a table that may change while it is read
                difference = f"has {key} = {here[key]!r}, and {trained[key]!r}"
                if key == FILE:
                    difference = "reads another file than"
                raise UserError(
                    f"{stage.where} {difference} where the model of [infer] was trained, so its "
                    "answers would be others: use the same."
                )

    @property
    def exported_stages(self) -> tuple[str, ...]:
        """The names of the stages inside the model file."""
        return () if self.predictor is None else self.predictor.stages

    def columns_read(self, schema: Schema) -> tuple[str, ...]:
        """Return the columns that the model reads of those after the stages."""
        return () if self.predictor is None else tuple(self.predictor.columns_read(schema))

    @property
    def provenance(self) -> dict[str, str]:
        """The headers of every record, for sinks that write headers."""
        headers = {"headrace.pipeline": self._pipeline.name}
        if self.predictor is not None and not self.follows_versions:  # then the rows say it
            headers["headrace.model"] = self.predictor.info()["version"]
        return headers


def trusted_network(module: Any) -> Network | None:
    """Return what makes the network of a model file that torch runs; None without the import string
    of a class whose code the user trusts."""
    if not isinstance(module, str):
        return None
    trusted = module

    def made(properties: Mapping[str, str]) -> Learner:
        from models.learners.modules.served import network_of  # torch

        return network_of(trusted, properties)

    return made


def _names(settings: object, column: str) -> bool:
    """Return whether a stage's settings name a column."""
    if isinstance(settings, Mapping):
        return any(key == column or _names(value, column) for key, value in settings.items())
    if isinstance(settings, list | tuple):
        return any(_names(value, column) for value in settings)
    return settings == column


def result_settings(stage: Stage) -> dict[str, Any]:
    """Return the settings of a stage that decide what it returns, as plain values: not what it
    still learns, nor where a file lies that it reads, but the file's digest."""
    settings, kept = stage.settings, {}
    if isinstance(settings, BaseModel):  # a user's stage need not keep any
        kept = settings.model_dump(mode="json", exclude=neutral_keys(type(settings)))
    return {**kept, FILE: stage.digest()}


__all__ = ["TABLE", "LoadedModel", "result_settings", "trusted_network"]
