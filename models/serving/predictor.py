"""Serves a model file: adds prediction columns to raw rows."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.event_time import times_in_ticks
from engine.columnar.hashing import hashes
from engine.columnar.state_table import Rounds, StateTable
from engine.types import (
    Batch,
    Features,
    Learner,
    Predictor,
    Schema,
    Snapshot,
    UserError,
    parse_type,
    require,
    type_name,
)
from models.export import model_files
from models.export.model_files import (
    FORMAT,
    STATE_AFTER,
    STATE_BEFORE,
    VECTOR,
    score_of,
    vector_of,
)
from models.export.onnx_inputs import OnnxInputs
from models.export.properties import Properties, StateProperties
from models.serving.answers import as_arrays
from models.serving.base import SessionPredictor, require_model, session
from models.serving.missing_values import MissingValues
from models.serving.settings import InferSettings

if TYPE_CHECKING:
    from models.serving.torch_body import TorchBody

Network = Callable[[Mapping[str, str]], Learner]
"""Makes a learner from the properties of a model file."""


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


def _table(state: StateProperties) -> StateTable:
    """Return the table of a model's states."""
    timed = state.time is not None
    return StateTable(width=state.width, keys=state.keys, idle=state.idle, timed=timed)


def _require_time(time: str | None, learned: Mapping[str, pl.DataType], schema: Schema) -> None:
    """Check the column of times, in whose ticks a state expires. Raises: UserError"""
    if time is None:
        return
    require(schema, [time], where="The model's state, by its time,")
    if schema[time] != learned.get(time):
        was = type_name(learned[time]) if time in learned else "of an unknown type"
        raise UserError(
            f"The model's state expires by the column '{time}', which was {was} where it learned "
            f"and is {type_name(schema[time])} here: declare the same type in [source.schema]."
        )


def _types(names: Mapping[str, str], columns: Sequence[str]) -> Schema:
    """Return types from their names in a pipeline file, without those that cannot be declared."""
    schema: Schema = {}
    for column in columns:
        with contextlib.suppress(ValueError, KeyError):
            schema[column] = parse_type(names[column])
    return schema


class OnnxPredictor(SessionPredictor):
    """Serves a model file that headrace wrote. Adds ``prediction`` (and ``probability`` for
    classes), ``vector`` where the model answers one, and ``model_version``.

    A row whose score is not finite is rejected: stage ``predict``, reason ``non_finite``.

    Args:
        probabilities: whether to add the probability of every class.
        network: makes the learner of a file whose network torch runs, from its properties.

    Raises: UserError for a file that is none of ours, is damaged, or needs a network.
    """

    Settings = InferSettings

    def __init__(
        self,
        settings: InferSettings,
        *,
        probabilities: bool = False,
        network: Network | None = None,
    ) -> None:
        path = Path(settings.model)
        require_model(path)
        data = path.read_bytes()
        if not model_files.whole(data):
            raise UserError(_rejection(path))
        super().__init__(settings, hashlib.sha256(data).hexdigest())
        self._score = score_of(self._session)
        properties = Properties.read(self.metadata, path)
        self._inputs = OnnxInputs.of(properties)
        self._missing = MissingValues(tuple(self._inputs.kinds), properties.vocabularies)
        self._body: TorchBody | None = None
        if properties.body == "torch":
            self._body = self._behind(path, properties.module, network)
        elif settings.module is not None:
            raise UserError(
                f"[infer] module is for model files whose network torch runs, and '{path}' holds "
                "all of its own: take module out."
            )
        self.features = Features(
            numeric=(),
            targets=properties.targets,
            quantiles=properties.quantiles,
            quantile=properties.quantile,
            task=properties.task,
            classes=properties.classes,
            vector_width=properties.vector_width,
            threshold=properties.threshold,
            probabilities=probabilities,
        )
        self.stages, self.before = properties.stages, properties.before
        self.before_settings = properties.before_settings
        self._state = properties.state
        self._table: StateTable | None = None
        if properties.state is not None:
            self._table = _table(properties.state)
        self.columns = _types(properties.columns, self.requires)
        self.parse_settings = properties.parse_settings
        self.target = properties.target
        self._read = {
            "inputs": properties.inputs,
            "lengths of lists": properties.lengths,
            "buckets": properties.buckets,
            "task": properties.task,
            "targets": properties.targets,
            "quantiles": properties.quantiles,
            "classes": properties.classes,
            "vector_width": properties.vector_width,
            "state": None if properties.state is None else properties.state.model_dump(),
        }

    @property
    def requires(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        state = () if self._state is None else self._state.columns
        return tuple(dict.fromkeys([*self._inputs.kinds, *state]))

    @property
    def answers(self) -> Schema:
        nothing = self._none(), self._no_vectors()
        columns = [*self._prediction_columns(*nothing), self.version(0)]
        return {column.name: column.dtype for column in columns}

    def columns_read(self, schema: Schema) -> tuple[str, ...]:
        return self.requires

    def interface(self) -> dict[str, Any]:
        return {**super().interface(), **self._read}

    def bind(self, schema: Schema) -> None:
        """Raises: UserError naming a column that the model needs and the schema lacks, or that is
        no number; or one that the answers would hide."""
        for column in (
            "prediction",
            "probability",
            *self.features.prediction_names,
            *([VECTOR] if self.features.vector_width else []),
            "model_version",
        ):
            if column in schema:
                raise UserError(
                    f"Column '{column}' is there already, and the model's answers are called that: "
                    "rename yours."
                )
        self._inputs.bind(schema)
        self._missing.bind(schema)
        if self._state is not None:
            require(schema, self._state.by, where="The model's state, by its key,")
            _require_time(self._state.time, self.columns, schema)

    def collate(self, batch: Batch) -> Batch:
        """Return the batch with the session's inputs."""
        batch = dataclasses.replace(batch, feed=self._inputs.feed(batch.frame))
        cut = self._inputs.truncated(batch.frame)
        return batch.counted("predict", truncated=cut) if cut else batch

    def predict(self, batch: Batch) -> Batch:
        """Predict every row."""
        batch = self.collate(batch) if batch.feed is None and len(batch) else batch
        vectors = self._no_vectors()
        if self._table is not None and len(batch):
            scores, counts = self._passed(self._table, batch.frame, batch.feed or {})
            batch = batch.counted("predict", **counts)
        else:
            scores, vectors = self._answered(batch.frame, batch.feed or {})
        finite = np.isfinite(scores).reshape(len(scores), self.features.outputs).all(axis=1)
        done = batch.with_frame(
            batch.frame.hstack(
                [*self._prediction_columns(scores, vectors), self.version(len(batch))]
            )
        )
        feed = batch.feed or {}
        if finite.all():
            return done.counted("predict", **self._missing.count(done.frame, feed))
        answered = {name: array[finite] for name, array in feed.items()}
        counts = self._missing.count(done.frame.filter(pl.Series(finite)), answered)
        detail = self._missing.reasons(done.frame)
        done = done.reject(pl.Series(finite), stage="predict", reason="non_finite", detail=detail)
        return done.counted("predict", **counts)

    @property
    def judged(self) -> Features | None:
        return None if self.features.targets else self.features

    def scores(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        """Return scores of raw rows, shape (n,) or (n, k). To a model with a state they are all
        the rows that there are."""
        feed = self._inputs.feed(frame)
        if self._state is not None and frame.height:
            return self._passed(_table(self._state), frame, feed)[0]
        return self._answered(frame, feed)[0]

    @property
    def carries_state(self) -> bool:
        return self._table is not None

    def snapshot(self) -> Snapshot:
        """Return the states of all keys, copied; None without a state."""
        return None if self._table is None else self._table.snapshot()

    def restore(self, value: Snapshot) -> None:
        if self._table is not None:
            self._table.restore(value)

    def apart(self) -> OnnxPredictor:
        if self._state is None:
            return self
        other = copy.copy(self)
        other._table = _table(self._state)
        return other

    def take_state(self, other: Predictor) -> None:
        assert isinstance(other, OnnxPredictor), "it shares the interface"
        self._table = other._table

    def memory(self) -> dict[str, int]:
        return {} if self._table is None else {"states": self._table.nbytes}

    def _passed(
        self, table: StateTable, frame: pl.DataFrame, feed: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], dict[str, int]]:
        """Return the scores of rows that take the states of their keys along, round by round, and
        what is counted. A row without a finite score leaves its key's state as it was."""
        assert self._state is not None, "a table has a state"
        time = self._state.time
        times = None if time is None else times_in_ticks(frame.get_column(time))
        entry = table.enter(hashes(frame, self._state.by), times)
        rounds = Rounds.of(np.maximum(entry.previous - entry.row, -1))
        lacking = self._inputs.imageless(frame)
        n = frame.height
        scores = np.empty((n, *self._none().shape[1:]), np.float32)
        states = np.empty((n, table.width), np.float32)
        state, at = table.states(entry, rounds.first), 0
        for size in rounds.sizes.tolist():
            rows = slice(None) if size == n else rounds.order[at : at + size]
            part = {name: array[rows] for name, array in feed.items()}
            state = state[:size]
            made, new = self._session.run([self._score, STATE_AFTER], {**part, STATE_BEFORE: state})
            made[lacking[rows]] = np.nan
            bad = ~np.isfinite(made.reshape(size, -1)).all(1)
            if bad.any():
                new[bad] = state[bad]
            scores[rows], states[rows] = made, new
            state, at = new, at + size
        table.put(entry.slots, states)
        return scores, entry.counts

    def _answered(
        self, frame: pl.DataFrame, feed: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return scores, NaN for a row without an image, and vectors, of no rows where the model
        answers none."""
        vectors = self._no_vectors()
        if not frame.height:  # ONNX Runtime ends the process: GRU, LSTM and GatherND of no rows
            return self._none(), vectors
        scores: NDArray[np.float32]
        if self._body is not None:
            scores = self._body.scores(dict(feed), frame.height)
        elif self.features.vector_width:
            scores, vectors = self._session.run([self._score, vector_of(self._session)], feed)
        else:
            scores = self._session.run([self._score], feed)[0]
        lacking = self._inputs.imageless(frame)
        if lacking.any():
            scores[lacking] = np.nan
        return scores, vectors

    def _prediction_columns(
        self, scores: NDArray[np.float32], vectors: NDArray[np.float32]
    ) -> list[pl.Series]:
        columns = self.features.prediction_columns(scores)
        return [*columns, as_arrays(VECTOR, vectors)] if self.features.vector_width else columns

    def _behind(self, path: Path, module: str, network: Network | None) -> TorchBody:
        """Return the network that torch runs behind the session."""
        if network is None:
            raise UserError(
                f"[infer] model '{path}' holds a network that could not become ONNX, so torch runs "
                f"its class, which is code of its author: name it, [infer] module = '{module}', if "
                "you trust it."
            )
        from models.serving.torch_body import TorchBody  # torch

        return TorchBody(self._session, network(self.metadata))

    def _none(self) -> NDArray[np.float32]:
        return np.empty(self.features.score_shape(0), np.float32)

    def _no_vectors(self) -> NDArray[np.float32]:
        return np.empty((0, self.features.vector_width), np.float32)


__all__ = ["OnnxPredictor", "session"]
