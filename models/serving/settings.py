"""The keys of [infer] and of its tables ``inputs`` and ``outputs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self, TypeVar

from pydantic import ByteSize, Field, PositiveFloat, field_validator, model_validator

from engine.types import Duration, Name, Names, Settings

S = TypeVar("S", bound=Settings)


class InferSettings(Settings):
    """``[infer]``

    Attributes:
        model: the model file (ONNX) that answers: one that headrace wrote, or any other. Or a
            folder of versions, ``runs/NAME/versions``: its pointer says which, and is followed.
        poll_interval: how often that pointer is looked at.
        max_slowdown: how many times the processor time of the version before a new one may take; a
            slower one is refused.
        shadow [share]: share of the rows (0-1) that the version in the shadow answers too, unseen
            (``headrace versions FOLDER --shadow NUMBER``); its divergence is on /metrics.
        canary [share]: share of the keys (0-1) that the version in the shadow answers in place of
            the one that serves.
        canary_by: the columns of that key.
        module: of a model file whose network could not become ONNX: the import string of its class,
            ``package.module:Class``, which torch runs. The file names it too, and its code is run
            because you name it here.
        inputs: of a file made elsewhere: input of its graph -> the column, the list of columns, or
            the table ``[infer.inputs.NAME]``. Inputs that are called like a column need none.
        outputs: of a file made elsewhere: output of its graph -> the column of its answers, or the
            table ``[infer.outputs.NAME]``. Without it, every output of numbers is a column of its
            name.
        providers: tensorrt, cuda, cpu in the order to try; unless given, cuda where there is
            one, then the cpu.
        strict_provider: fail where the first of them is not what it really runs on.
        threads: of ONNX Runtime on the CPU; all cores unless given.
        max_seconds [seconds]: processor time in which a file made elsewhere must load and answer a
            few rows before it serves.
        max_memory: bytes that it may take meanwhile; 2 GiB and eight times its size unless given.
    """

    model: Name
    poll_interval: Duration = Field(1.0, gt=0)
    max_slowdown: float = Field(2.0, ge=1)
    shadow: float = Field(0.0, ge=0, le=1)
    canary: float = Field(0.0, ge=0, le=1)
    canary_by: Names = ()
    module: Name | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    outputs: dict[str, Any] = Field(default_factory=dict)
    providers: tuple[str, ...] = ()
    strict_provider: bool = False
    threads: int | None = Field(None, ge=1, le=256)
    max_seconds: PositiveFloat = 60
    max_memory: ByteSize | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _of_a_key(self) -> Self:
        if bool(self.canary) != bool(self.canary_by):
            raise ValueError("expected both of canary and canary_by, or none")
        return self


class InputSettings(Settings):
    """``[infer.inputs.NAME]``: what the input NAME of a graph reads: ``columns``, or ``mask``, or
    ``constant``.

    Attributes:
        columns: a column, or several whose numbers stand side by side; ``NAME = "column"`` and
            ``NAME = ["a", "b"]`` in ``[infer.inputs]`` say the same.
        mask: a column of lists that another input reads: 1 where it has a value, 0 where it is
            padded.
        constant: a number that fills the input.
        length [values]: lists are padded to this length, and cut beyond it (counted as
            ``truncated``).
        pad: what lists are padded with.
        range: what bytes of 0 and 255 of an image become where the input takes floats; [0, 1]
            unless given.
        mean, std: subtracted from that, and divided by: one number, or one for each channel.
        channels: the order in which the graph reads the channels of an ``image`` stage's pixels.
        layout: ``channels_first`` or ``channels_last``; as the graph's shape says unless given.
    """

    columns: Names = ()
    mask: Name | None = None
    constant: float | None = None
    length: int | None = Field(None, ge=1, le=1 << 20)
    pad: float = 0.0
    range: tuple[float, float] | None = None
    mean: float | tuple[float, ...] | None = None
    std: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    channels: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["channels_first", "channels_last"] | None = None

    @field_validator("columns", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _one(cls, columns: Any) -> Any:
        """Accept a single name."""
        return (columns,) if isinstance(columns, str) else columns

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [bool(self.columns), self.mask is not None, self.constant is not None]
        if sum(given) != 1:
            raise ValueError("expected one of the keys 'columns', 'mask' and 'constant'")
        return self

    @property
    def scales_pixels(self) -> bool:
        """Whether it says how bytes become floats."""
        return any(value is not None for value in (self.range, self.mean, self.std))


class OutputSettings(Settings):
    """``[infer.outputs.NAME]``: what becomes of the output NAME of a graph; its other keys are
    those of the answer.

    Attributes:
        column: of the answer; NAME unless given.
        answer: value, vector, classes, probabilities, boxes, masks or tokens; value where a row has
            one number, else vector, unless given.
    """

    column: Name | None = None
    answer: str | None = None


class Validate(Protocol):
    """Makes settings from a table of the pipeline file."""

    def __call__(self, settings: type[S], table: Mapping[str, Any], section: str, /) -> S:
        """Raises: UserError for a wrong key or value."""
        ...


def validated(settings: type[S], table: Mapping[str, Any], section: str, /) -> S:
    """Make settings where there is no pipeline file."""
    return settings(**table)


def input_table(given: object) -> Mapping[str, Any] | None:
    """Return the table that a value of ``[infer.inputs]`` stands for; None if it is no such
    value."""
    if isinstance(given, str | list | tuple):
        return {"columns": given}
    return given if isinstance(given, Mapping) else None


def output_table(given: object) -> Mapping[str, Any] | None:
    """Return the table that a value of ``[infer.outputs]`` stands for; None if it is no such
    value."""
    if isinstance(given, str):
        return {"column": given}
    return given if isinstance(given, Mapping) else None


__all__ = [
    "InferSettings",
    "InputSettings",
    "OutputSettings",
    "Validate",
    "input_table",
    "output_table",
    "validated",
]
