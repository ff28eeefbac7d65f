"""The inputs and outputs of an ONNX graph: their names, types and shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Size = int | str | None
"""A dimension: its size, the name of a size that is free, or None for a free one without a name."""

TEXT = "text"
FLOATS = frozenset(("float16", "float32", "float64"))
NUMBERS = FLOATS | {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
}  # fmt: skip
"""Types that numpy has too, by its names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphValue:
    """An input or an output of a graph.

    Attributes:
        name: its name in the graph.
        type: one of `NUMBERS`, ``text``, or ONNX's words for what numpy has no array of
            (``seq(map(int64, float32))``).
        shape: its dimensions, rows first; None if the file does not say.
        labels: the classes that the file holds for an output, in the order of its scores.
    """

    name: str
    type: str
    shape: tuple[Size, ...] | None
    labels: tuple[str, ...] = ()

    @property
    def is_array(self) -> bool:
        """Whether it is an array of numbers."""
        return self.type in NUMBERS

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floats."""
        return self.type in FLOATS

    @property
    def row(self) -> tuple[Size, ...]:
        """The dimensions of one row."""
        return () if self.shape is None else self.shape[1:]

    def __str__(self) -> str:
        return f"{self.name} ({self.type}, {_words(self.shape)})"


def listed(values: Iterable[GraphValue]) -> str:
    """Return a part of a sentence that lists them."""
    return ", ".join(map(str, values)) or "none"


def fits(size: Size, number: int) -> bool:
    """Return whether a dimension can be of this size."""
    return not isinstance(size, int) or size == number


def _words(shape: tuple[Size, ...] | None) -> str:
    if shape is None:
        return "of unknown shape"
    return " x ".join("?" if size is None else str(size) for size in shape) or "one number"


__all__ = ["FLOATS", "NUMBERS", "TEXT", "GraphValue", "Size", "fits", "listed"]
