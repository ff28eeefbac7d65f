"""Convolutions over sequences and over images."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt, field_validator
from torch import nn

from models.layers.layer import (
    Activation,
    Block,
    BlockSettings,
    Layer,
    Signal,
    mask_of_windows,
    masked,
)
from models.layers.normalization import How
from models.layers.shape import Place, Shape


class ConvolutionSettings(BlockSettings):
    """Units that each read a small window, at every place of a sequence or an image.

    Attributes:
        width: number of units, the channels of the result.
        size [places]: length of the window, or its height and breadth; an odd number.
        stride [places]: distance of the windows: 2 makes a sequence half as long, and an image
            half as high and broad.
        activation: function of their results.
        normalization: of the result: ``group`` (of channels), ``layer`` or ``batch``; of a
            sequence at each place by itself.
    """

    kind: Literal["convolution"] = "convolution"
    width: PositiveInt
    size: PositiveInt = 3
    stride: PositiveInt = 1
    activation: Activation = "relu"
    normalization: How = "group"

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size % 2 == 0:
            raise ValueError("expected an odd number, so that a window has a middle,")
        return size

    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer, and the sequence or image it makes. Raises: UserError"""
        place.require(given, "sequence", "image")
        height, breadth = (-(-side // self.stride) for side in given.area)
        made = Shape(form=given.form, width=self.width, area=(height, breadth))
        over = ImageConvolution if given.form == "image" else SequenceConvolution
        body = over(given.width, self.width, self.size, self.stride)
        block = Block(
            body, self, given, made, place, activation=self.activation, stride=self.stride
        )
        return block, made


class ImageConvolution(Layer):
    """(n, channels, height, breadth) -> (n, width, height / stride, breadth / stride)."""

    def __init__(self, channels: int, width: int, size: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, size, stride, padding=size // 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        return self.convolution(x), mask


class SequenceConvolution(Layer):
    """(n, length, channels) -> (n, length / stride, width). Padding counts as zeros, as what is
    beyond the ends does."""

    def __init__(self, channels: int, width: int, size: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, width, size, stride, padding=size // 2)
        self._stride = stride

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        y = self.convolution(masked(x, mask).transpose(1, 2)).transpose(1, 2)
        if mask is not None and self._stride > 1:
            mask = mask_of_windows(mask, self._stride)
        return y, mask


__all__ = ["ConvolutionSettings"]
