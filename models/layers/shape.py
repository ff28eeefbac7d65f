"""What flows from layer to layer: its form, and the sentence where a layer cannot take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.types import UserError
from models.net_input import NetInput

Form = Literal["ids", "codes", "vector", "sequence", "image"]
WORDS: Mapping[Form, str] = {
    "ids": "ids",
    "codes": "category codes",
    "vector": "one vector per row",
    "sequence": "a sequence of vectors",
    "image": "an image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of what a layer gets or makes, without the rows.

    | form     | tensor                             | mask        |
    |----------|------------------------------------|-------------|
    | ids      | (n, length) int64, 0 = padding     | (n, length) |
    | codes    | (n, columns) int64                 | none        |
    | vector   | (n, width) float32                 | none        |
    | sequence | (n, length, width) float32         | (n, length) |
    | image    | (n, width, height, breadth) float32 | none       |

    Attributes:
        width: numbers of a vector; channels of an image.
        sizes: codes: number of codes of each column; ids: number of ids.
        area: image: height and breadth in pixels.
    """

    form: Form
    width: int = 0
    sizes: tuple[int, ...] = ()
    area: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, net_input: NetInput) -> Shape:
        """Return the shape in which an input reaches its first layer."""
        if net_input.form == "numbers":
            return cls(form="vector", width=len(net_input.columns))
        if net_input.form == "image":
            channels, height, breadth = net_input.shape
            return cls(form="image", width=channels, area=(height, breadth))
        if net_input.form == "array":
            return cls(form="sequence", width=net_input.shape[-1])
        return cls(form=net_input.form, sizes=net_input.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A layer's place in the pipeline file.

    Attributes:
        table: the table with its list of layers: ``[model.inputs.words]``.
        number: of the layer in the list, from 1.
        kind: of the layer.
        before_convolution: whether a convolution follows in the list.
    """

    table: str
    number: int
    kind: str
    before_convolution: bool = False

    def require(self, given: Shape, *forms: Form) -> None:
        """Raises: UserError if what the layer gets has none of these forms."""
        if given.form not in forms:
            expected = " or ".join(WORDS[form] for form in forms)
            raise self.error(
                f"expected {expected}, got {WORDS[given.form]}: {_advice(given.form, forms)}"
            )

    def error(self, text: str) -> UserError:
        """Return an error about this layer; `text` ends the sentence, without its full stop."""
        return UserError(f"{self.table} layer {self.number} ({self.kind}): {text}.")


def _advice(got: Form, forms: tuple[Form, ...]) -> str:
    if "ids" in forms:
        return "only the first layer of a column of ids or codes is an embedding; take this one out"
    if got == "ids" or (got == "codes" and "vector" in forms):
        return "put an embedding before it"
    if "vector" in forms:
        return "put a pooling before it"
    if got == "vector":
        return "put it before the layer that makes one vector of them, or take it out"
    return "take it out"


__all__ = ["WORDS", "Form", "Place", "Shape"]
