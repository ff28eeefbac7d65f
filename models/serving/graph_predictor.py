"""Serves an ONNX file that was made elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.types import (
    PART,
    POSITION,
    RESERVED,
    Batch,
    Features,
    Mark,
    Schema,
    UserError,
    nearest,
)
from engine.types.arrays import Bools
from engine.types.plural import counted
from models.column_arrays import Array
from models.export.model_files import FORMAT
from models.serving.answers import Answer, ValueAnswer, answer_class_of
from models.serving.base import SessionPredictor
from models.serving.graph_runner import GraphRunner, finite
from models.serving.inputs import GraphInputs
from models.serving.inspection import (
    FileTrial,
    GraphFile,
    Outcome,
    inspect,
    limits_of,
    run_trial,
)
from models.serving.missing_values import MissingValues
from models.serving.session import available_providers
from models.serving.settings import (
    InferSettings,
    InputSettings,
    OutputSettings,
    Validate,
    input_table,
    output_table,
)
from models.serving.signature import GraphValue, Size, listed

log = logging.getLogger("headrace.predictor")

TRIAL_ROWS = 3
MAX_APART = 1e-2
"""The largest difference between the answers to one row in two batches, as a share of the largest
answer: sums of float16 in another order differ by less."""
STAGE = "predict"
VERSION = "model_version"


def open_graph(
    settings: InferSettings, validate: Validate, *, probabilities: bool = False
) -> GraphPredictor:
    """Look at a file in a child process, and return its predictor.

    Raises: UserError if it cannot be served.
    """
    path = Path(settings.model)
    usable = available_providers(settings.providers)
    graph = inspect(path, limits_of(settings), usable)
    if graph.properties.get("format") == FORMAT:
        raise UserError(
            f"[infer] model '{path}' is damaged, or was changed after it was written: its content "
            "does not have its digest; export it again."
        )
    if graph.refusal:
        raise UserError(f"[infer] model '{path}' cannot be served: {graph.refusal}.")
    if probabilities:
        raise UserError(
            f"[sink] probabilities is for models that headrace wrote, and '{path}' was made "
            'elsewhere: say answer = "probabilities" in [infer.outputs.NAME].'
        )
    return GraphPredictor(
        settings, graph, input_settings(settings, validate), _answers(settings, validate)
    )


def input_settings(settings: InferSettings, validate: Validate) -> dict[str, InputSettings]:
    """Return input -> its table. Raises: UserError for one with a wrong key or value."""
    inputs: dict[str, InputSettings] = {}
    for name, given in settings.inputs.items():
        table = input_table(given)
        if table is None:
            raise UserError(
                f"[infer.inputs] expects a column, a list of columns or a table for '{name}', got "
                f"{given!r}."
            )
        inputs[name] = validate(InputSettings, table, f"infer.inputs.{name}")
    return inputs


def _answers(settings: InferSettings, validate: Validate) -> tuple[Answer, ...]:
    answers: list[Answer] = []
    for name, given in settings.outputs.items():
        table = output_table(given)
        if table is None:
            raise UserError(
                f"[infer.outputs] expects a column or a table for '{name}', got {given!r}."
            )
        answer_class = answer_class_of(table, name)
        made = validate(answer_class.Settings, table, f"infer.outputs.{name}")
        answers.append(answer_class(name, made))
    return tuple(answers)


class GraphPredictor(SessionPredictor):
    """Serves any ONNX file: its inputs are columns, its outputs become answers.

    Rows whose answers are not finite are rejected (stage ``predict``, reason ``non_finite``), and
    so are rows for which the graph fails, alone, without their batch.

    Args:
        graph: what is in the file.
        inputs: input of the graph -> its table; those that are left out are matched by name and
            type.
        answers: what becomes of its outputs; every output of numbers is a column of its name if
            there are none.

    Raises: UserError if it cannot be served.
    """

    def __init__(
        self,
        settings: InferSettings,
        graph: GraphFile,
        inputs: Mapping[str, InputSettings],
        answers: tuple[Answer, ...],
    ) -> None:
        path = Path(settings.model)
        self._path, self._graph, self._given = path, graph, inputs
        self._answers = answers or self._all_outputs()
        self._require_outputs()
        super().__init__(settings, _digest(self._files()))
        self._read = tuple(dict.fromkeys(name for a in self._answers for name in a.reads))
        self._added: Schema = {}

    @property
    def where(self) -> str:
        """The file, for sentences."""
        return f"[infer] model '{self._path}'"

    @property
    def answers(self) -> Schema:
        return {**self._added, VERSION: pl.String()}

    def columns_read(self, schema: Schema) -> tuple[str, ...]:
        return self._inputs_for(schema).columns

    def interface(self) -> dict[str, Any]:
        graph = {"inputs": self._graph.inputs, "outputs": self._graph.outputs}
        return {**super().interface(), **graph}

    def bind(self, schema: Schema) -> None:
        """Match the columns, and try the graph on rows of their shapes.

        Raises: UserError if they do not fit, or if the graph cannot answer row by row.
        """
        self._inputs = self._inputs_for(schema)
        self._missing = MissingValues(self._inputs.columns)
        self._missing.bind(schema)
        for remark in self._inputs.remarks:
            log.info("%s", remark)
        batch_size = self._inputs.batch_size
        fixed = frozenset(c.value.name for c in self._inputs.constants if not c.has_rows)
        tried = self._try(fixed)
        self._runner = GraphRunner(self._session, tried, fixed, batch_size, self.where)
        for answer in self._answers:
            added = answer.bind(tried)
            for column in added:
                self._require_new(column, schema)
            self._added |= added
        self._require_new(VERSION, schema)
        if batch_size is not None:
            log.info(
                "%s takes %s at a time: batches are cut, and filled up with their last row; "
                "'headrace adopt' frees it.", self.where, counted(batch_size, "row"),
            )  # fmt: skip

    def collate(self, batch: Batch) -> Batch:
        """Return the batch with the graph's inputs, without the rows that cannot be."""
        batch = self._inputs.usable(batch)
        return dataclasses.replace(batch, feed=self._inputs.feed(batch.frame))

    def predict(self, batch: Batch) -> Batch:
        """Predict every row."""
        batch, arrays = self._answered(batch)
        if len(batch):
            added = [column for answer in self._answers for column in answer.columns(arrays)]
        else:  # of a size that the file leaves open nothing is known
            added = [pl.Series(name, [], dtype) for name, dtype in self._added.items()]
        batch = batch.counted(STAGE, **self._missing.count(batch.frame, {}))
        return batch.with_frame(batch.frame.hstack([*added, self.version(len(batch))]))

    @property
    def judged(self) -> Features | None:
        answer = self._judged_answer
        return None if answer is None else answer.judged

    def scores(self, frame: pl.DataFrame) -> NDArray[np.floating[Any]]:
        answer = self._judged_answer
        if answer is None:
            return super().scores(frame)
        numbered = frame.with_columns(pl.int_range(pl.len()).alias(POSITION))
        batch, arrays = self._answered(Batch(frame=numbered, mark=Mark(), arrived=0.0))
        known = answer.label_scores(arrays)
        scores = np.full((frame.height, *known.shape[1:]), np.nan)
        scores[batch.frame[POSITION].to_numpy()] = known
        return scores

    @property
    def _judged_answer(self) -> Answer | None:
        """The answer that a label is compared with: probabilities of classes before their numbers,
        and these before a value."""
        usable = [(answer, made) for answer in self._answers if (made := answer.judged) is not None]
        best = max(
            usable, key=lambda pair: (pair[1].probabilities, bool(pair[1].classes)), default=None
        )
        return None if best is None else best[0]

    def _answered(self, batch: Batch) -> tuple[Batch, dict[str, Array]]:
        """Return the rows that have answers, and the outputs of these."""
        batch = batch if batch.feed is not None else self.collate(batch)
        assert batch.feed is not None
        whole = self._runner.whole(batch.feed, len(batch))
        arrays, reasons = self._runner.run(batch.feed, len(batch))
        if reasons:
            batch, whole = self._without_failed(batch, reasons), np.delete(whole, list(reasons))
        return self._without_unusable(batch, arrays, whole)

    # ------------------------------------------------------------------------------------ what fits

    def _inputs_for(self, schema: Schema) -> GraphInputs:
        return GraphInputs(self._graph.inputs, self._given, schema, self.where)

    def _all_outputs(self) -> tuple[Answer, ...]:
        usable = [value for value in self._graph.outputs if value.is_array]
        if len(usable) < len(self._graph.outputs) and usable:
            others = [value for value in self._graph.outputs if not value.is_array]
            log.warning("%s: outputs left out, no numbers: %s", self.where, listed(others))
        return tuple(ValueAnswer(value.name, OutputSettings()) for value in usable)

    def _require_outputs(self) -> None:
        """Check that outputs are there and are numbers."""
        outputs = {value.name: value for value in self._graph.outputs}
        if not self._answers:
            hint = "; 'headrace adopt' makes an array of a map" if self._graph.mapped else ""
            raise UserError(
                f"{self.where} gives {listed(self._graph.outputs)}: expected an output of "
                f"numbers{hint}."
            )
        for answer in self._answers:
            for name in answer.reads:
                if name not in outputs:
                    raise UserError(
                        f"{answer.where} names '{name}', which is no output of {self.where}."
                        f"{nearest(name, outputs)}"
                    )
                if not outputs[name].is_array:
                    hint = f"'headrace adopt {self._path}' gives it as an array"
                    more = f": {hint}" if name in self._graph.mapped else ""
                    raise UserError(
                        f"{answer.where} expects an output of numbers, got {outputs[name]}{more}."
                    )

    def _require_new(self, column: str, schema: Schema) -> None:
        if column in {*schema, *RESERVED, PART, *self._added}:
            raise UserError(
                f"Column '{column}' is there already, and an answer of {self.where} is called "
                "that: give it another name by [infer.outputs.NAME] column, or rename yours."
            )

    def _files(self) -> list[Path]:
        beside = [self._path.parent / name for name in self._graph.external]
        return [self._path, *beside]

    # --------------------------------------------------------------------------------------- trial

    def _try(self, fixed: frozenset[str]) -> dict[str, GraphValue]:
        """Return the outputs with the shapes that they really have.

        Args:
            fixed: the inputs that are the same for all rows.

        Raises: UserError if the graph cannot be run, or a row's answer depends on other rows.
        """
        batch_size = self._inputs.batch_size
        rows = batch_size or TRIAL_ROWS
        limits = limits_of(self.settings)
        needed = self._inputs.row_bytes * rows
        if needed > limits.memory // 4:
            raise UserError(
                f"{self.where} cannot be served: its inputs take {needed:,} bytes for "
                f"{counted(rows, 'row')}, and [infer] max_memory is {limits.memory:,}."
            )
        trial = FileTrial(
            path=str(self._path),
            outputs=self._read,
            feeds=tuple(self._inputs.example(rows, zeros=zeros) for zeros in (False, True)),
            fixed=tuple(fixed),
            one_by_one=batch_size is None,
            providers=available_providers(self.settings.providers),
        )
        outcome = run_trial(trial, limits)
        if outcome.refusal:
            raise UserError(f"{self.where} cannot be served: {outcome.refusal}.")
        self._require_rows(outcome, rows)
        declared = {value.name: value for value in self._graph.outputs}
        return {name: _as_tried(declared[name], outcome) for name in self._read}

    def _require_rows(self, outcome: Outcome, rows: int) -> None:
        """Check that every row has an answer of its own."""
        for name in self._read:
            shape = outcome.shapes.get(name)
            if not shape or shape[0] != rows:
                got = "is no array" if shape is None else "is a single number"
                got = f"has shape {' x '.join(map(str, shape))}" if shape else got
                raise UserError(
                    f"{self.where} cannot be served: output '{name}' for {counted(rows, 'row')} "
                    f"{got}, and expected a first dimension of {rows}: an answer for each row."
                )
        if self._graph.draws:
            log.warning("%s draws random numbers: equal rows get different answers.", self.where)
            return
        if self._graph.quantizes_by_batch:
            log.info(
                "%s quantizes each batch by its own range: an answer depends a little on the rows "
                "beside it.", self.where,
            )  # fmt: skip
            return
        for name in self._read:
            if outcome.apart[name] > MAX_APART:
                raise UserError(
                    f"{self.where} cannot be served: output '{name}' of a row changes with the "
                    "other rows of its batch, so its first dimension is not the rows, or rows "
                    "influence each other."
                )

    # --------------------------------------------------------------------------------- rows that go

    def _without_failed(self, batch: Batch, reasons: Mapping[int, str]) -> Batch:
        detail = [reasons.get(row) for row in range(len(batch))]
        keep = np.ones(len(batch), np.bool_)
        keep[list(reasons)] = False
        details = pl.Series([f"The model fails on this row: {d}." if d else None for d in detail])
        return batch.reject(keep, stage=STAGE, reason="model_error", detail=details)

    def _without_unusable(
        self, batch: Batch, arrays: dict[str, Array], whole: Bools
    ) -> tuple[Batch, dict[str, Array]]:
        """Return the rows with answers that can be used.

        Args:
            whole: which rows have finite inputs only.
        """
        usable = finite(arrays.values(), len(batch))
        if not usable.all():
            causes = (
                "a value that it reads is missing, infinite or too large for its type, and no "
                "stage before it fills or clips it.",
                "it answers these values, which are finite, with NaN or infinity.",
            )
            expected = "Expected finite answers of the model: "
            detail = pl.Series([f"{expected}{causes[int(ok)]}" for ok in whole[~usable]])
            details = pl.Series([None], dtype=pl.String).extend_constant(None, len(batch) - 1)
            details = details.scatter(np.flatnonzero(~usable), detail)
            batch, arrays = _rejected(batch, arrays, usable, "non_finite", details)
        for answer in self._answers:
            if (unusable := answer.unusable(arrays)) is not None:
                reason, bad, sentence = unusable
                batch, arrays = _rejected(batch, arrays, ~bad, reason, sentence)
        return batch, arrays


def _rejected(
    batch: Batch, arrays: dict[str, Array], good: Bools, reason: str, detail: str | pl.Series
) -> tuple[Batch, dict[str, Array]]:
    if good.all():
        return batch, arrays
    batch = batch.reject(good, stage=STAGE, reason=reason, detail=detail)
    return batch, {name: array[good] for name, array in arrays.items()}


def _as_tried(value: GraphValue, outcome: Outcome) -> GraphValue:
    """Return an output as the trial gave it: its type, and sizes that the file does not fix."""
    seen = outcome.shapes[value.name]
    sizes: tuple[Size, ...] = (None,) * len(seen)
    if value.shape is not None and len(value.shape) == len(seen):
        sizes = value.shape
    kept = [size if size == n else None for size, n in zip(sizes[1:], seen[1:], strict=True)]
    return dataclasses.replace(value, type=outcome.types[value.name], shape=(None, *kept))


def _digest(files: Sequence[Path]) -> str:
    """Return the digest of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


__all__ = ["GraphPredictor", "input_settings", "open_graph"]
