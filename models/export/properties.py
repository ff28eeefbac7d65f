"""The properties of a model file, as it holds them beside its graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    Json,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from engine.errors import UserError

Share = Annotated[float, Field(gt=0, lt=1)]


class StateProperties(BaseModel):
    """The state of a model file: as `engine.types.KeyedState`."""

    model_config = ConfigDict(frozen=True)

    by: tuple[str, ...]
    width: PositiveInt
    keys: PositiveInt
    idle: PositiveInt | None = None
    time: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return self.by if self.time is None else (*self.by, self.time)


class Properties(BaseModel):
    """The properties of a model file.

    Attributes:
        inputs: column -> its kind in the graph.
        task, classes, threshold, target: as in [model].
        targets: of several targets of a regression; their predictions are the score's columns.
        quantiles: that it predicts of a regression; their predictions are the score's columns.
        quantile: that its one value is, as in `engine.types.Features`; null for a mean.
        vector_width: of the vector that it answers for each row; 0 if it answers none.
        stages: scrub stages that are inside the file.
        before: scrub stages of its pipeline that are not: rows come as those leave them.
        before_settings: such a stage -> its settings that decide what it returns.
        columns: column -> name of the type in which it was learned.
        parse_settings: how cells were read, see `engine.types.Source.parse_settings`.
        vocabularies: column of categories -> the values that have a code, where they are few.
        lengths: column of lists or arrays -> the most values that are kept; null keeps all.
        buckets: the lengths to which lists are padded, as in [model].
        body: what runs the network: the graph, or torch behind it; see
            `models.export.torch_body`.
        module: import string of a network that torch runs.
        state: what the model carries from row to row of a key; empty if it carries nothing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: Json[dict[str, Literal["double", "string", "int64", "ids", "floats", "image", "array"]]]
    task: Literal["regression", "binary", "multiclass"]
    classes: Json[tuple[str, ...]]
    threshold: FiniteFloat = 0.5
    target: str = ""
    targets: Json[tuple[str, ...]] = ()
    quantiles: Json[tuple[float, ...]] = ()
    quantile: Json[Share | None] = None
    vector_width: NonNegativeInt = 0
    stages: Json[tuple[str, ...]] = ()
    before: Json[tuple[str, ...]] = ()
    before_settings: Json[dict[str, dict[str, Any]]] = {}
    columns: Json[dict[str, str]] = {}
    parse_settings: Json[dict[str, str | tuple[str, ...] | dict[str, str]]] = {}
    vocabularies: Json[dict[str, tuple[str, ...]]] = {}
    lengths: Json[dict[str, int | None]] = {}
    buckets: Json[tuple[int, ...]] = ()
    body: Literal["onnx", "torch"] = "onnx"
    module: str = ""
    state: Json[StateProperties] | None = None

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if not _fits(self.task, len(self.classes)):
            raise ValueError(f"{len(self.classes)} classes do not fit task {self.task}")
        return self

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> Self:
        """Parse a file's metadata. Raises: UserError if it is damaged."""
        try:
            return cls.model_validate(dict(metadata))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = str((*first["loc"], "classes")[0])
            raise UserError(
                f"The model file {path} is damaged: its property '{key}' is "
                f"{metadata.get(key, 'not there')[:100]!r} ({first['msg']}); export it again."
            ) from None


def _fits(task: str, classes: int) -> bool:
    if task == "binary":
        return classes == 2
    return classes >= 2 if task == "multiclass" else classes == 0


__all__ = ["Properties", "StateProperties"]
