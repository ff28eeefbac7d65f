"""The base class of all Settings; durations and names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Annotated, Any

import polars as pl
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from engine.types.schema import element_type


def _only_number(annotation: str) -> bool:
    return bool(re.search(r"\b(int|float|ByteSize)\b", annotation)) and not re.search(
        r"\b(bool|Any)\b", annotation
    )


class Settings(BaseModel):
    """The base class of every component's Settings: frozen, keyword-only, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse booleans for numbers: True is a 1 to Python, and a mistake in a pipeline file.
        TOML's integers have 64 bits."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and _only_number(repr(field.annotation)):
            raise ValueError("expected a number")
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


Duration = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str)]
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
