"""The base of all layers and of their settings; what comes after the weights of most: a
normalization, an activation, dropout, and a shortcut around them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from engine.types import Settings
from models.layers.normalization import How, Normalization
from models.layers.shape import Place, Shape

Signal: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""What flows from layer to layer: a tensor and its mask; see `models.layers.shape.Shape`."""
Activation = Literal["relu", "silu", "gelu", "tanh", "none"]
ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}
MASKED = -3e4
"""A softmax score of a gap or of padding: its share is exactly 0, and a row without values has
shares too, where those of -inf would be nan. It fits float16."""


class Layer(nn.Module):
    """A layer: ``layer(x, mask) -> (x, mask)``.

    The mask of a sequence is true where there is a value. Gaps are between the values of a row, and
    padding is after them; both may hold anything, and a layer that mixes places ignores them. So
    the result of a row depends neither on its padding nor on the other rows, and a row without any
    value has one too. What is no sequence has no mask.
    """

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        """Return the result and its mask."""
        raise NotImplementedError


class LayerSettings(Settings):
    """The settings of one layer: a table of a list ``layers``.

    Attributes:
        kind: which layer it is.
    """

    kind: str

    @abstractmethod
    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer for what it is given, and the shape of what it makes.

        Raises: UserError if it cannot take that.
        """


class BlockSettings(LayerSettings):
    """What most layers can have after their weights.

    Attributes:
        normalization: of the result: ``layer``, ``group`` (of channels) and ``batch``; of a
            sequence at each place by itself.
        dropout [share]: share of the results silenced in a training step.
        residual: add what the layer gets to what it makes; through weights of its own where the
            sizes differ.
    """

    normalization: How = "none"
    dropout: float = Field(0.0, ge=0, lt=1)
    residual: bool = False


class Each(Layer):
    """A module of torch that looks at each vector by itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        return self.module(x), mask


class Block(Layer):
    """A layer, then a normalization, an activation and dropout, and a shortcut around them.

    Args:
        body: the layer.
        given, made: shapes of what it gets and makes.
        stride: the distance of its results, where it makes fewer than it gets.
    """

    def __init__(
        self,
        body: Layer,
        settings: BlockSettings,
        given: Shape,
        made: Shape,
        place: Place,
        *,
        activation: Activation = "none",
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.body = body
        self.normalization = Normalization(settings.normalization, made, place)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.shortcut = Shortcut(given, made, stride) if settings.residual else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        y, made_mask = self.body(x, mask)
        y = self.dropout(self.activation(self.normalization(y, made_mask)))
        return (y if self.shortcut is None else y + self.shortcut(x)), made_mask


class Shortcut(nn.Module):
    """The way around a layer: unchanged, or by a linear map where the sizes differ."""

    def __init__(self, given: Shape, made: Shape, stride: int) -> None:
        super().__init__()
        self.module: nn.Module
        self._stride = 1
        if given.width == made.width and stride == 1:
            self.module = nn.Identity()
        elif made.form == "image":
            self.module = nn.Conv2d(given.width, made.width, 1, stride, bias=False)
        else:
            self.module = nn.Linear(given.width, made.width, bias=False)
            self._stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the summand."""
        result: torch.Tensor = self.module(x if self._stride == 1 else x[:, :: self._stride])
        return result


def masked(x: torch.Tensor, mask: torch.Tensor | None, value: float = 0.0) -> torch.Tensor:
    """Return a sequence with `value` in its padding, (n, length, width)."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), value)


def mask_of_windows(mask: torch.Tensor, size: int) -> torch.Tensor:
    """Return which windows of so many places hold a value, (n, length / size rounded up)."""
    filled = F.pad(mask.float(), (0, size - 1)).unsqueeze(1).unsqueeze(1)
    # torch.export takes no max_pool1d of any length.
    return F.max_pool2d(filled, (1, size)).squeeze(1).squeeze(1) > 0


__all__ = [
    "ACTIVATIONS",
    "MASKED",
    "Activation",
    "Block",
    "BlockSettings",
    "Each",
    "Layer",
    "LayerSettings",
    "Signal",
    "mask_of_windows",
    "masked",
]
