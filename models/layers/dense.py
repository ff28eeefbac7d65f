"""Dense layers."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import nn

from models.layers.layer import Activation, Block, BlockSettings, Each, Layer
from models.layers.shape import Place, Shape


class DenseSettings(BlockSettings):
    """A layer of units that each read the whole vector.

    Attributes:
        width: number of units.
        activation: function of their results.
    """

    kind: Literal["dense"] = "dense"
    width: PositiveInt
    activation: Activation = "relu"

    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer, and the vector it makes. Raises: UserError"""
        place.require(given, "vector")
        made = Shape(form="vector", width=self.width)
        body = Each(nn.Linear(given.width, self.width))
        return Block(body, self, given, made, place, activation=self.activation), made


__all__ = ["DenseSettings"]
