"""Poolings: one vector of a sequence or an image, or of each window of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from pydantic import PositiveInt
from torch import nn
from torch.nn import functional as F

from models.layers.layer import MASKED, Layer, LayerSettings, Signal, mask_of_windows, masked
from models.layers.shape import Place, Shape

How = Literal["mean", "max", "sum", "last", "attention"]
WINDOW = 2
"""The window of a pooling before a convolution."""
LOWEST = -1e30
"""Below every number that is there, and finite."""
Pool: TypeAlias = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
"""A pooling function of torch: of a tensor, by windows of such height and breadth."""


class PoolingSettings(LayerSettings):
    """Makes one vector per row of a sequence or an image.

    Attributes:
        how: the mean, the max, the sum or the last of the vectors, or their mean by learned
            weights (attention). Of a row without values it is 0.
        size [places]: takes the mean or max of each window of so many places (and as many in
            height), which makes a sequence or image smaller. Unless given, 2 before a convolution,
            else everything.
    """

    kind: Literal["pooling"] = "pooling"
    how: How
    size: PositiveInt | None = None

    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer and what it makes: a vector, or the same form with fewer places.

        Raises: UserError
        """
        place.require(given, "sequence", "image")
        size = self.size or (WINDOW if place.before_convolution else None)
        if size is not None:
            return self._windows(given, place, size)
        if given.form == "image" and self.how == "last":
            raise place.error(
                "expected how = 'mean', 'max', 'sum' or 'attention' for an image, got 'last'"
            )
        over = ImagePooling if given.form == "image" else Pooling
        return over(self.how, given.width), Shape(form="vector", width=given.width)

    def _windows(self, given: Shape, place: Place, size: int) -> tuple[Layer, Shape]:
        if self.how not in ("mean", "max"):
            raise place.error(
                f"expected how = 'mean' or 'max' for windows of {size}, got '{self.how}'"
            )
        if given.form == "sequence":
            return SequenceWindows(self.how, size), given
        if min(given.area) < size:
            high, broad = given.area
            raise place.error(
                f"expected an image of at least {size} x {size}, got {high} x {broad}: take out a "
                "pooling or a stride before it"
            )
        height, breadth = (side // size for side in given.area)
        made = Shape(form="image", width=given.width, area=(height, breadth))
        return ImageWindows(self.how, size), made


class Pooling(Layer):
    """(n, length, width) -> (n, width)."""

    def __init__(self, how: How, width: int) -> None:
        super().__init__()
        self._how = how
        self.score = nn.Linear(width, 1) if how == "attention" else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        assert mask is not None, "a sequence has a mask"
        if self.score is not None:
            score = self.score(x).squeeze(-1).masked_fill(~mask, MASKED)
            return _weighted(masked(x, mask), score), None
        return _pooled(self._how, x, mask), None


class ImagePooling(Layer):
    """(n, width, height, breadth) -> (n, width)."""

    def __init__(self, how: How, width: int) -> None:
        super().__init__()
        self._how = how
        self.score = nn.Linear(width, 1) if how == "attention" else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        places = x.flatten(2)
        if self.score is not None:
            places = places.transpose(1, 2)
            return _weighted(places, self.score(places).squeeze(-1)), None
        if self._how == "max":
            return places.amax(2), None
        return (places.mean(2) if self._how == "mean" else places.sum(2)), None


class ImageWindows(Layer):
    """(n, width, height, breadth) -> (n, width, height / size, breadth / size)."""

    def __init__(self, how: How, size: int) -> None:
        super().__init__()
        self.module = nn.MaxPool2d(size) if how == "max" else nn.AvgPool2d(size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        return self.module(x), mask


class SequenceWindows(Layer):
    """(n, length, width) -> (n, length / size rounded up, width), of the values that are there."""

    def __init__(self, how: How, size: int) -> None:
        super().__init__()
        self._how = how
        self._size = size

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        assert mask is not None, "a sequence has a mask"
        if self._how == "max":
            y = self._over(masked(x, mask, LOWEST), F.max_pool2d, LOWEST)
        else:
            share = self._over(mask.unsqueeze(-1).to(x.dtype), F.avg_pool2d, 0.0)
            y = self._over(masked(x, mask), F.avg_pool2d, 0.0) / share.clamp(min=1 / self._size)
        mask = mask_of_windows(mask, self._size)
        return masked(y, mask), mask

    def _over(self, x: torch.Tensor, pool: Pool, value: float) -> torch.Tensor:
        """Pool the windows; the last one is filled up with `value`."""
        filled = F.pad(x.transpose(1, 2), (0, self._size - 1), value=value)
        # torch.export takes no max_pool1d of any length.
        return pool(filled.unsqueeze(2), (1, self._size)).squeeze(2).transpose(1, 2)


def _pooled(how: How, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if how == "max":
        most = masked(x, mask, LOWEST).amax(1)
        return most.masked_fill(~mask.any(1, keepdim=True), 0.0)
    if how == "last":
        places = torch.arange(x.shape[1], device=x.device)
        last = (places * mask).amax(1)
        at = last.unsqueeze(-1).unsqueeze(-1).expand(-1, 1, x.shape[2])
        return masked(x, mask).gather(1, at).squeeze(1)
    total = masked(x, mask).sum(1)
    return total if how == "sum" else total / mask.sum(1, keepdim=True).clamp(min=1)


def _weighted(x: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Return the mean weighted by the softmax of the scores."""
    return (score.softmax(1).unsqueeze(-1) * x).sum(1)


__all__ = ["PoolingSettings"]
