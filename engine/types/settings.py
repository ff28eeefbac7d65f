"""The base class of all Settings; durations and names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import polars as pl
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from engine.types.schema import element_type


class Untyped(str):
    """Text of the environment, or of --set where it is no TOML: it does not say its type, so that
    a number may be written in it. Text of a file is text."""

    __slots__ = ()


def _mistyped(value: Any, annotation: Any) -> Iterator[Any]:
    """Yield texts, numbers and booleans in a value that are of none of the types it may have, and
    that pydantic would turn into one of them."""
    kinds = list(_alternatives(annotation))
    if isinstance(value, Untyped) or any(_takes_anything(kind) for kind in kinds):
        return
    if isinstance(value, list | tuple):
        lists = [get_args(kind) for kind in kinds if get_origin(kind) in (tuple, list)]
        yield from _mistyped_in_each(value, [args[0] for args in lists if args])
    elif isinstance(value, dict):
        tables = [get_args(kind) for kind in kinds if get_origin(kind) in (dict, Mapping)]
        if not any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
            yield from _mistyped_in_each(value.values(), [args[1] for args in tables])
    elif isinstance(value, bool | int | float | str):
        named = any(value in get_args(kind) for kind in kinds if get_origin(kind) is Literal)
        own, others = next(types for kind, *types in KEPT if isinstance(value, kind))
        if not named and own.isdisjoint(kinds) and not others.isdisjoint(kinds):
            yield value


def _mistyped_in_each(values: Iterable[Any], annotations: Sequence[Any]) -> Iterator[Any]:
    """Yield those of the first of several types, unless one of the others has none."""
    each = [[odd for value in values for odd in _mistyped(value, kind)] for kind in annotations]
    if all(each):
        yield from each[0] if each else ()


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that a value may have, without their limits."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for kind in get_args(annotation):
            yield from _alternatives(kind)
    elif origin is Annotated and not any(
        isinstance(each, BeforeValidator) for each in get_args(annotation)
    ):
        yield from _alternatives(get_args(annotation)[0])
    else:
        yield annotation


def _takes_anything(kind: Any) -> bool:
    """Return whether a type says itself what it takes: a duration, or a class with its own way."""
    return kind is Any or get_origin(kind) is Annotated


KEPT: tuple[tuple[Any, set[Any], set[Any]], ...] = (
    (bool, {bool}, {int, float, ByteSize}),
    ((int, float), {int, float, ByteSize}, {bool}),
    (str, {str, SecretStr, ByteSize}, {int, float, bool}),
)
"""Types of a value, the types of settings that it is, and those that pydantic would make of it."""


class Settings(BaseModel):
    """The base class of every component's Settings: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse booleans for numbers, which they are to Python, and text and numbers for what they
        only spell: `"64"` is no number, and `"no"` is not false. TOML's integers have 64 bits."""
        field = cls.model_fields[str(info.field_name)]
        if not any(isinstance(each, BeforeValidator) for each in field.metadata):
            for odd in _mistyped(value, field.annotation):
                if odd is not value and isinstance(odd, str):
                    raise ValueError(f"expected numbers, got the text '{odd}'")
                raise PydanticCustomError("another_type", "expected another type")
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError("expected a whole number of 64 bits")
        return value

    def secrets(self) -> Iterator[str]:
        """Return the values that must never be shown; by default every `SecretStr`."""
        for _, value in self:
            if isinstance(value, SecretStr):
                yield value.get_secret_value()


def _some_text(text: str) -> str:
    if not text:
        raise ValueError("expected text that is not empty")
    if "\0" in text:  # neither a path nor a sentence can have it
        raise ValueError("expected text without a zero byte")
    return text


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if "" in names:
        raise ValueError("expected names that are not empty")
    if len(set(names)) < len(names):
        raise ValueError("expected every name once")
    return names


def key_pairs(by: tuple[str, ...] | dict[str, str]) -> dict[str, str]:
    """Return key column of the rows -> that of what is joined with them, of a setting ``by`` that
    lists the names both have, or gives both."""
    return dict(by) if isinstance(by, dict) else {column: column for column in by}


Name = Annotated[str, AfterValidator(_some_text)]
"""The type of a setting that names a column, a file or a folder; it is never empty."""

Names = Annotated[tuple[str, ...], AfterValidator(_each_once)]
"""The type of a setting that lists names."""

NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
"""The nanoseconds of each unit of a duration; months and years have no fixed length."""


def nanoseconds(text: str) -> int | None:
    """Parse a duration such as "250ms", "1.5h" or "1h30m"; return None for any other text."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d|w)", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        return None
    return sum(int(Fraction(n) * NANOSECONDS[unit]) for n, unit in parts)


def _seconds(value: Any) -> float:
    """Raises: ValueError for what is neither a duration nor a finite number of seconds."""
    if isinstance(value, str) and (length := nanoseconds(value.replace(" ", ""))) is not None:
        return length / NANOSECONDS["s"]
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError('expected seconds or a duration like "250ms", "1s", "5m", "2h" or "7d"')
    return seconds


DURATION = BeforeValidator(_seconds, json_schema_input_type=float | str)
Duration = Annotated[float, DURATION]
"""The type of a duration: seconds, written as a number or as text with units ("250ms", "1h30m")."""


def _each(
    value: pl.Expr, dtype: pl.DataType, change: Callable[[pl.Expr, pl.DataType], pl.Expr]
) -> pl.Expr:
    """Return a value with the innermost values of its lists and objects changed; `value` itself
    if it has none."""
    if isinstance(dtype, pl.List):
        element = _each(pl.element(), element_type(dtype), change)
        return value if element.meta.eq(pl.element()) else value.list.eval(element)
    if isinstance(dtype, pl.Struct):
        fields = [
            _each(value.struct.field(name), inner, change).alias(name)
            for name, inner in dtype.to_schema().items()
            if isinstance(inner, pl.DataType)
        ]
        return pl.when(value.is_not_null()).then(pl.struct(fields)) if fields else value
    return change(value, dtype)
