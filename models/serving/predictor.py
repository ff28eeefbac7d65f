"""Serves a model file: adds prediction columns to raw rows."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.types import Batch, Features, Name, Predictor, Schema, UserError, nearest, parse_type
from models.export import model_files
from models.export.model_files import FORMAT, SCORE
from models.export.onnx_inputs import Inputs
from models.serving.session import (
    PROVIDER_NAMES,
    NotAModel,
    active_provider,
    available_providers,
    load,
)

log = logging.getLogger("headrace.predictor")


def session(path: Path, providers: tuple[str, ...], threads: int | None = None) -> Any:
    """A session; see `models.serving.session.load`. Raises: UserError when the file is no model."""
    try:
        return load(path, providers, threads)
    except NotAModel as error:
        raise UserError(
            f"{path} cannot be loaded as an ONNX model: {error}; expected a file that "
            "'headrace export' or 'headrace compress' wrote."
        ) from None


def _rejection(path: Path) -> str:
    """Return why a file is not one that `model_files.write` wrote."""
    wrote = "expected a file that 'headrace export' or 'headrace compress' wrote"
    try:
        properties = model_files.metadata(path)
    except ValueError as error:
        return f"[infer] model '{path}' is no ONNX model ({error}): {wrote}."
    if (format := properties.get("format")) != FORMAT:
        return (
            f"[infer] model '{path}' was not written by headrace: expected format '{FORMAT}' in "
            f"its metadata, got {format or 'none'!r}; {wrote}."
        )
    return (
        f"[infer] model '{path}' is damaged, or was changed after it was written: its content does "
        "not have its digest; export it again."
    )


def _types(names: Mapping[str, str], columns: Sequence[str]) -> Schema:
    """Return types from their names in a pipeline file, without those that cannot be declared."""
    schema: Schema = {}
    for column in columns:
        with contextlib.suppress(ValueError, KeyError):
            schema[column] = parse_type(names[column])
    return schema


class OnnxPredictor(Predictor):
    """Serves a model file. Adds ``prediction`` (and ``probability`` for classes) and
    ``model_version``.

    A row whose score is not finite is rejected: stage ``predict``, reason ``non_finite``.

    Attributes:
        requires: the raw columns it reads.
        columns: and the types in which it has learned them.
        stages: scrub stages that are inside the model file, so that serving leaves them out.
        before: scrub stages that it was trained behind and that no file holds.
        provider: where it really runs.
    """

    class Settings(types.Settings):
        """``[infer]``

        Attributes:
            model: the model file (ONNX) that answers.
            providers: tensorrt, cuda, cpu in the order to try; unless given, cuda where there is
                one, then the cpu.
            strict_provider: fail where the first of them is not what it really runs on.
            threads: of ONNX Runtime on the CPU; all cores unless given.
        """

        model: Name
        providers: tuple[str, ...] = ()
        strict_provider: bool = False
        threads: int | None = Field(None, ge=1, le=256)

    def __init__(self, settings: OnnxPredictor.Settings) -> None:
        self.settings = settings
        path = Path(settings.model)
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob("*.onnx")])
            raise UserError(f"[infer] model '{path}' is no file: train and export one first.{near}")
        data = path.read_bytes()
        if not model_files.whole(data):
            raise UserError(_rejection(path))
        usable = available_providers(settings.providers)
        self._session = session(path, usable, settings.threads)
        self.provider = self._check_provider()
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, str] = metadata
        properties = model_files.Properties.read(metadata, path)
        self._inputs = Inputs(properties.inputs)
        self.features = Features(
            numeric=(),
            task=properties.task,
            classes=properties.classes,
            threshold=properties.threshold,
        )
        self.stages, self.before = properties.stages, properties.before
        self.requires = tuple(self._inputs.kinds)
        self.columns = _types(properties.columns, self.requires)
        self.parse_settings = properties.parse_settings
        self._digest = hashlib.sha256(data).hexdigest()[:12]
        self._version = metadata.get("version", self._digest)
        self._tag = pl.Series("model_version", [self._version])

    def bind(self, schema: Schema) -> None:
        """Raises: UserError naming a column that the model needs and the schema lacks, or that is
        no number; or one that the answers would hide."""
        for column in (
            "prediction",
            "probability",
            *self.features.prediction_names,
            "model_version",
        ):
            if column in schema:
                raise UserError(
                    f"Column '{column}' is there already, and the model's answers are called that: "
                    "rename yours."
                )
        for column, input_type in self._inputs.kinds.items():
            if column not in schema:
                raise UserError(
                    f"The model needs column '{column}', which is not there."
                    f"{nearest(column, schema)}"
                )
            here = schema[column]
            if input_type != "string" and not (here.is_numeric() or here == pl.Boolean):
                raise UserError(f"The model needs numbers in column '{column}', got {here}.")

    def collate(self, batch: Batch) -> Batch:
        """Return the batch with the session's inputs."""
        return dataclasses.replace(batch, feed=self._inputs.feed(batch.frame))

    def predict(self, batch: Batch) -> Batch:
        """Predict every row."""
        scores = (
            self._run(batch.feed or self._inputs.feed(batch.frame)) if len(batch) else self._none()
        )
        finite = np.isfinite(scores).reshape(len(scores), self.features.outputs).all(axis=1)
        version = self._tag.new_from_index(0, len(batch))
        done = batch.with_frame(
            batch.frame.hstack([*self.features.prediction_columns(scores), version])
        )
        if finite.all():
            return done
        detail = (
            "Expected a finite score: a value is missing or infinite that nothing fills; a "
            "[scrub.missing] in the pipeline that trains the model does."
        )
        return done.reject(pl.Series(finite), stage="predict", reason="non_finite", detail=detail)

    def scores(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        """Return scores of raw rows, shape (n,) or (n, k)."""
        return self._run(self._inputs.feed(frame))

    def _run(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self._session.run([SCORE], feed)[0]
        return scores

    def _none(self) -> NDArray[np.float32]:
        k = self.features.outputs
        return np.empty((0, k) if k > 1 else 0, np.float32)

    def info(self) -> dict[str, str]:
        """The labels of ``headrace_model_info``."""
        return {
            "version": self._version,
            "precision": self.metadata.get("precision", "float32"),
            "provider": self.provider,
            "digest": self._digest,
        }

    def _check_provider(self) -> str:
        """Report the provider in use. Raises: UserError if it is not the requested one, and
        `strict`."""
        used = active_provider(self._session)
        requested = [PROVIDER_NAMES.get(name, name) for name in self.settings.providers]
        if requested and used != requested[0]:
            sentence = (
                f"[infer] providers asks for {requested[0]}, but the model runs on {used} here"
            )
            if self.settings.strict_provider:
                raise UserError(f"{sentence}: install its libraries, or drop strict_provider.")
            log.warning("%s", sentence)
        return used


__all__ = ["OnnxPredictor", "session"]
