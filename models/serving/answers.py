"""What a graph's outputs become: columns of numbers, vectors, classes, probabilities, masks and
tokens. Boxes are in `models.serving.boxes`.

An answer gets arrays of n rows whose floats are all finite: other rows are rejected before.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from engine.types import Features, HeadraceError, Name, Schema, UserError, nearest
from engine.types.arrays import Bools, Floats
from engine.user_code.imports import imported
from models.column_arrays import POLARS_TYPES
from models.serving.settings import OutputSettings
from models.serving.signature import GraphValue

Arrays = Mapping[str, NDArray[Any]]
Bad = tuple[str, Bools, str]
"""A reason, a mask of its rows, and a sentence."""
SLACK = 1e-3
"""How far beyond 0 and 1 rounding may take a probability."""
Activation = Literal["softmax", "sigmoid"]
log = logging.getLogger("headrace.predictor")


class Answer(ABC):
    """Makes columns of one or more outputs of a graph.

    Args:
        output: the output that the answer is of; ``settings`` may name further ones.

    Attributes:
        column: the name of its first column.
    """

    Settings: ClassVar[type[OutputSettings]] = OutputSettings

    def __init__(self, output: str, settings: Any) -> None:
        self.output = output
        self.settings = settings
        self.column: str = settings.column or output

    @property
    def where(self) -> str:
        """How a sentence about it begins."""
        return f"[infer.outputs] '{self.output}'"

    @property
    def reads(self) -> tuple[str, ...]:
        """The outputs that it is made of."""
        return (self.output,)

    @abstractmethod
    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        """Return the columns that it adds.

        Raises: UserError if no such answer can be made of outputs of these types and shapes.
        """

    @abstractmethod
    def columns(self, arrays: Arrays) -> list[pl.Series]:
        """Return those columns for the rows of the arrays."""

    def unusable(self, arrays: Arrays) -> Bad | None:
        """Return the rows that have no answer; None if there can be none."""
        return None

    @property
    def judged(self) -> Features | None:
        """The task, classes and threshold by which a label is compared with it, once it is bound;
        None if it has no score for a label."""
        return None

    def label_scores(self, arrays: Arrays) -> Floats:
        """Return what `judged` is about: a value or the probability of class 1, shape (n,), or
        those of all classes, shape (n, classes)."""
        raise NotImplementedError

    def refuse(self, expected: str, got: object) -> UserError:
        """Return the error for an output that does not fit."""
        answer = self.settings.answer
        return UserError(f"{self.where} with answer = '{answer}' expects {expected}, got {got}.")


# ------------------------------------------------------------------------------ numbers and vectors


class ValueAnswer(Answer):
    """One number per row, or a vector, as the graph gives it."""

    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        value = outputs[self.output]
        single = _is_single(value)
        if self.settings.answer == "value" and not single:
            raise self.refuse("one number per row", value)
        self._single = single and self.settings.answer != "vector"
        self._free = not all(isinstance(size, int) for size in value.row)
        dtype = POLARS_TYPES[value.type]
        if self._single:
            return {self.column: dtype}
        if not self._free:
            return {self.column: pl.Array(dtype, tuple(map(int, _sizes(value.row))) or (1,))}
        for _ in value.row:
            dtype = pl.List(dtype)
        return {self.column: dtype}

    def columns(self, arrays: Arrays) -> list[pl.Series]:
        values = without_halves(arrays[self.output])
        if self._single:
            return [pl.Series(self.column, values.reshape(len(values)))]
        if self._free:
            return [as_lists(self.column, values)]
        return [as_arrays(self.column, values)]

    @property
    def judged(self) -> Features | None:
        return Features(numeric=()) if self._single else None

    def label_scores(self, arrays: Arrays) -> Floats:
        return arrays[self.output].reshape(-1).astype(np.float64)


# ---------------------------------------------------------------------------------------- classes


class ClassSettings(OutputSettings):
    """The keys of answers of classes.

    Attributes:
        classes: their names, in the order of the graph's scores: a list, or a file with a name a
            line; unless given, those that the model file holds, or else their numbers.
        activation: ``softmax`` or ``sigmoid`` makes probabilities of the graph's scores; they are
            taken as they are unless given.
    """

    classes: Name | tuple[str, ...] = ()
    activation: Activation | None = None

    @field_validator(
        "classes", mode="before", json_schema_input_type=str | list[str | bool | float]
    )
    @classmethod
    def _as_text(cls, classes: Any) -> Any:
        """Return labels as text, as [model] classes does."""
        if not isinstance(classes, list | tuple):
            return classes
        return tuple(json.dumps(c) if isinstance(c, bool | int | float) else c for c in classes)


class _OfClasses(Answer):
    """What answers of classes have in common."""

    def __init__(self, output: str, settings: Any) -> None:
        super().__init__(output, settings)
        self.classes = names(settings.classes, f"{self.where} classes")

    def _require_scores(self, value: GraphValue) -> int:
        """Return the number of scores per row. Raises: UserError for another shape."""
        width = value.row[0] if value.row else 1
        if width is None or isinstance(width, str):  # the file does not say; the classes do
            width = len(self.classes) or None
        if not value.is_float or width is None or any(size != 1 for size in value.row[1:]):
            raise self.refuse("a score for each class, floats of shape n x classes", value)
        wanted = 2 if width == 1 else width
        if self.classes and len(self.classes) != wanted:
            raise self.refuse(f"{wanted} classes for {value}", f"{len(self.classes)}")
        held = value.labels if len(value.labels) == wanted else ()
        self._require_same_order(held)
        self.classes = self.classes or held or tuple(map(str, range(wanted)))
        return width

    def _require_same_order(self, held: tuple[str, ...]) -> None:
        """Compare the names of the classes with those that the model file holds.

        Raises: UserError if a class of the file stands at another place.
        """
        pairs = [*zip(held, self.classes, strict=False)]
        if any(given != own and given in held for own, given in pairs):
            wanted = f"classes in the order of the model file, {_quoted(held)}"
            raise self.refuse(wanted, _quoted(self.classes))
        renamed = [f"'{own}' as '{given}'" for own, given in pairs if given != own]
        if renamed and not all(own.isdecimal() for own in held):
            log.info("%s answers classes of the model file: %s.", self.where, ", ".join(renamed))

    def _scores(self, arrays: Arrays) -> Floats:
        """Return the activated scores, shape (n, classes); one of two classes becomes two."""
        scores = by_row(arrays[self.output].astype(np.float64))
        scores = activated(scores, self.settings.activation)
        scores = np.hstack([1 - scores, scores]) if scores.shape[1] == 1 else scores
        if scores.shape[1] != len(self.classes):
            raise HeadraceError(
                f"{self.where} gave {scores.shape[1]} scores per row for {len(self.classes)} "
                "classes."
            )
        return scores

    @property
    def judged(self) -> Features | None:
        if len(self.classes) < 2:
            return None
        task = "binary" if len(self.classes) == 2 else "multiclass"
        return Features(numeric=(), task=task, classes=self.classes, probabilities=True)

    def label_scores(self, arrays: Arrays) -> Floats:
        scores = self._scores(arrays)
        return scores[:, 1] if scores.shape[1] == 2 else scores


class ClassAnswer(_OfClasses):
    """The class with the largest score, and the score; or the best few of both. An output of whole
    numbers, one per row, is taken for the numbers of the classes.

    Of one score per row, as nets with a sigmoid give, the second of two classes is answered where
    it is above the threshold.
    """

    class Settings(ClassSettings):
        """``[infer.outputs.NAME]`` with ``answer = "classes"``

        Attributes:
            top [classes]: how many of the best classes; more than 1 gives lists, the best first.
            threshold: of one score per row.
        """

        top: int = Field(1, ge=1)
        threshold: float = 0.5

    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        value = outputs[self.output]
        self._numbered = value.is_array and not value.is_float and _is_single(value)
        if self._numbered:
            if self.settings.top > 1 or self.settings.activation:
                raise self.refuse("scores for 'top' and 'activation'", value)
            if self.classes and value.labels != tuple(map(str, range(len(value.labels)))):
                got = f"the labels {_quoted(value.labels)}: answer with the scores, or with value"
                raise self.refuse("the numbers 0, 1, ... of the classes", got)
            self._require_same_order(value.labels)
            return {self.column: pl.String() if self.classes else pl.Int64()}
        self._scored = self._require_scores(value)
        if self.settings.top > len(self.classes):
            raise self.refuse(f"top of {len(self.classes)} at most", self.settings.top)
        text: pl.DataType = pl.String()
        score: pl.DataType = pl.Float64()
        if self.settings.top > 1:
            text, score = pl.List(text), pl.List(score)
        return {self.column: text, f"{self.column}_score": score}

    def columns(self, arrays: Arrays) -> list[pl.Series]:
        if self._numbered:
            numbers = arrays[self.output].reshape(-1).astype(np.int64)
            if not self.classes:
                return [pl.Series(self.column, numbers)]
            return [pl.Series(self.column, self.classes, pl.String).gather(numbers)]
        scores, top = self._scores(arrays), self.settings.top
        best = self._best(scores)
        best_scores = np.take_along_axis(scores, best, axis=1)
        labels = pl.Series(self.column, self.classes, pl.String).gather(best.reshape(-1))
        if top == 1:
            return [labels, pl.Series(f"{self.column}_score", best_scores[:, 0])]
        bounds = np.arange(0, best.size + 1, top)
        return [
            in_lists(self.column, labels, bounds),
            in_lists(f"{self.column}_score", pl.Series(best_scores.reshape(-1)), bounds),
        ]

    @property
    def judged(self) -> Features | None:
        judged = super().judged
        if judged is None or (not self._numbered and self._scored > 1):
            return judged
        if self._numbered:
            return dataclasses.replace(judged, probabilities=False)
        return dataclasses.replace(judged, threshold=self.settings.threshold)

    def label_scores(self, arrays: Arrays) -> Floats:
        if not self._numbered:
            return super().label_scores(arrays)
        # A class without a probability: it alone, and surely.
        surely = np.eye(len(self.classes))[arrays[self.output].reshape(-1).astype(np.int64)]
        return surely[:, 1] if len(self.classes) == 2 else surely

    def unusable(self, arrays: Arrays) -> Bad | None:
        if not (self._numbered and self.classes):
            return None
        numbers, known = arrays[self.output].reshape(-1), len(self.classes)
        detail = (
            f"Expected the number of one of {known} classes from output '{self.output}', got "
            "another."
        )
        return "unknown_class", (numbers < 0) | (numbers >= known), detail

    def _best(self, scores: Floats) -> NDArray[np.int64]:
        """Return the numbers of the best classes, the best first, shape (n, top)."""
        if self._scored == 1 and self.settings.top == 1:
            above: Bools = scores[:, 1:] > self.settings.threshold
            return above.astype(np.int64)
        if self.settings.top == 1:
            return np.asarray(scores.argmax(axis=1)[:, None])
        best: NDArray[np.int64] = np.argsort(-scores, axis=1, kind="stable")
        return best[:, : self.settings.top]


class ProbabilityAnswer(_OfClasses):
    """A column for each class. A row whose scores are no probabilities is rejected."""

    class Settings(ClassSettings):
        """``[infer.outputs.NAME]`` with ``answer = "probabilities"``"""

    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        self._require_scores(outputs[self.output])
        named = [f"{self.column}_{name}" for name in self.classes]
        if len(set(named)) < len(named):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise self.refuse("every class once", f"'{twice}' twice")
        return dict.fromkeys(named, pl.Float64())

    def columns(self, arrays: Arrays) -> list[pl.Series]:
        scores = self._scores(arrays)
        return [
            pl.Series(f"{self.column}_{name}", scores[:, i]) for i, name in enumerate(self.classes)
        ]

    def unusable(self, arrays: Arrays) -> Bad | None:
        if self.settings.activation is not None:
            return None
        scores = by_row(arrays[self.output])
        wrong: Bools = np.asarray(((scores < -SLACK) | (scores > 1 + SLACK)).any(axis=1))
        detail = (
            f"Expected probabilities from 0 to 1 in output '{self.output}', got other numbers: set "
            "activation to softmax or sigmoid."
        )
        return "no_probability", wrong, detail


# -------------------------------------------------------------------------------- masks and tokens


class MaskAnswer(Answer):
    """A class for each pixel, an array of UInt8 of shape (height, width): that of the largest of
    its scores, n x classes x height x width; of one score 1 above the threshold, else 0."""

    class Settings(OutputSettings):
        """``[infer.outputs.NAME]`` with ``answer = "masks"``

        Attributes:
            threshold: of one score per pixel.
        """

        threshold: float = 0.5

    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        value = outputs[self.output]
        depth = value.row[0] if len(value.row) == 3 else 1
        if len(value.row) not in (2, 3) or not isinstance(depth, int) or depth > 256:
            raise self.refuse("scores of shape n x classes x height x width", value)
        sizes = value.row[-2:]
        self._fixed = all(isinstance(size, int) for size in sizes)
        if self._fixed:
            return {self.column: pl.Array(pl.UInt8(), tuple(map(int, _sizes(sizes))))}
        return {self.column: pl.List(pl.List(pl.UInt8()))}

    def columns(self, arrays: Arrays) -> list[pl.Series]:
        scores = arrays[self.output]
        if scores.ndim == 4 and scores.shape[1] > 1:
            masks = scores.argmax(axis=1).astype(np.uint8)
        else:
            above = scores > self.settings.threshold
            masks = above.reshape(len(scores), *scores.shape[-2:]).astype(np.uint8)
        make = as_arrays if self._fixed else as_lists
        return [make(self.column, masks)]


class TokenAnswer(Answer):
    """The token of each place of a sequence, a list: that of the largest of its scores, n x length
    x tokens, or the graph's own numbers, n x length."""

    class Settings(OutputSettings):
        """``[infer.outputs.NAME]`` with ``answer = "tokens"``

        Attributes:
            vocabulary: a file, UTF-8, with a token a line: line 1 is token 0. Numbers unless given.
        """

        vocabulary: Name | None = None

    def __init__(self, output: str, settings: Any) -> None:
        super().__init__(output, settings)
        self._known = names(settings.vocabulary or (), f"{self.where} vocabulary")

    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        value = outputs[self.output]
        self._scored = value.is_float and len(value.row) == 2
        width = value.row[1] if self._scored else None
        if not self._scored and (value.is_float or not value.is_array or len(value.row) != 1):
            raise self.refuse("scores of shape n x length x tokens, or whole numbers", value)
        if self._known and isinstance(width, int) and width != len(self._known):
            raise self.refuse(f"a vocabulary of {width:,} tokens", f"{len(self._known):,}")
        return {self.column: pl.List(pl.String() if self._known else pl.Int64())}

    def columns(self, arrays: Arrays) -> list[pl.Series]:
        tokens = self._numbers(arrays)
        bounds = np.arange(0, tokens.size + 1, max(1, tokens.shape[1]))
        flat = pl.Series(tokens.reshape(-1))
        if self._known:
            flat = pl.Series(self._known, dtype=pl.String).gather(flat)
        return [in_lists(self.column, flat, bounds)]

    def unusable(self, arrays: Arrays) -> Bad | None:
        if not self._known:
            return None
        tokens, known = self._numbers(arrays), len(self._known)
        detail = (
            f"Expected tokens of a vocabulary of {known:,} from output '{self.output}', got others."
        )
        wrong: Bools = np.asarray(((tokens < 0) | (tokens >= known)).any(axis=1))
        return "unknown_token", wrong, detail

    def _numbers(self, arrays: Arrays) -> NDArray[np.int64]:
        values = arrays[self.output]
        return values.argmax(axis=2) if self._scored else values.astype(np.int64)


# ---------------------------------------------------------------------------------- what they share


def names(given: str | Sequence[str], where: str) -> tuple[str, ...]:
    """Return the names of a list, or of a file with one a line.

    Raises: UserError for a file that cannot be read or has none.
    """
    if not isinstance(given, str):
        return tuple(given)
    path = Path(given)
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.txt")])
        raise UserError(f"{where} '{given}' is no file: expected a list, or a file of names.{near}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} '{given}' cannot be read: {error}.") from None
    if not lines:
        raise UserError(f"{where} '{given}' expects a name a line, got none.")
    return tuple(lines)


def _quoted(classes: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in classes)


def by_row(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values of each row side by side, shape (n, k); also of no rows."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def activated(scores: Floats, activation: Activation | None) -> Floats:
    """Return the scores, or the probabilities that the activation makes of them."""
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
    if activation == "softmax":
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    return scores


def without_halves(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values as a type that polars has."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def as_arrays(name: str, values: NDArray[Any]) -> pl.Series:
    """Return a column of arrays of one shape."""
    rows = len(values)
    shape = values.shape[1:] or (1,)
    flat = pl.Series(name, np.ascontiguousarray(values).reshape(-1))
    return flat.reshape((rows, *shape))


def as_lists(name: str, values: NDArray[Any]) -> pl.Series:
    """Return a column of lists, in as many levels as the values have."""
    column = pl.Series(np.ascontiguousarray(values).reshape(-1))
    count = values.size
    for size in reversed(values.shape[1:]):
        count = count // size if size else 0
        column = in_lists(name, column, np.arange(count + 1) * size)
    return column.alias(name)


def in_lists(name: str, values: pl.Series, bounds: NDArray[Any]) -> pl.Series:
    """Return a column of lists of the values, list i from ``bounds[i]`` to ``bounds[i + 1]``."""
    flat: Any = values.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(name, pa.LargeListArray.from_arrays(bounds.astype(np.int64), flat))


def _is_single(value: GraphValue) -> bool:
    """Return whether there is one number per row."""
    return value.shape is not None and len(value.shape) > 0 and all(s == 1 for s in value.row)


def _sizes(row: Sequence[object]) -> list[int]:
    return [size for size in row if isinstance(size, int)]


ANSWERS: Mapping[str, str] = {
    "value": "models.serving.answers:ValueAnswer",
    "vector": "models.serving.answers:ValueAnswer",
    "classes": "models.serving.answers:ClassAnswer",
    "probabilities": "models.serving.answers:ProbabilityAnswer",
    "boxes": "models.serving.boxes:Boxes",
    "masks": "models.serving.answers:MaskAnswer",
    "tokens": "models.serving.answers:TokenAnswer",
}
"""Answer -> import string."""


def answer_class_of(table: Mapping[str, Any], name: str = "NAME") -> type[Answer]:
    """Return the class of an answer. Raises: UserError for an unknown one."""
    answer = table.get("answer", "value")
    if answer not in ANSWERS:
        raise UserError(
            f"[infer.outputs.{name}] has no answer '{answer}'.{nearest(str(answer), ANSWERS)}"
        )
    loaded: type[Answer] = imported(ANSWERS[answer], "[infer.outputs] answer")
    return loaded


__all__ = [
    "ANSWERS",
    "Answer",
    "Arrays",
    "Bad",
    "ClassAnswer",
    "ClassSettings",
    "MaskAnswer",
    "ProbabilityAnswer",
    "TokenAnswer",
    "ValueAnswer",
    "activated",
    "answer_class_of",
    "as_arrays",
    "as_lists",
    "in_lists",
    "names",
    "without_halves",
]
