"""Normalizations that neither padding nor small batches disturb."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from models.layers.shape import Place, Shape

How = Literal["none", "layer", "group", "batch"]
MAX_GROUPS = 8
GROUP_CHANNELS = 4
"""The fewest channels of a group, where there are so many: fewer would leave little of a vector."""


class Normalization(nn.Module):
    """Normalizes a vector, a sequence at each place by itself, or an image.

    Raises: UserError where a single number would be normalized, of which nothing is left.
    """

    def __init__(self, how: How, shape: Shape, place: Place) -> None:
        super().__init__()
        if how in ("layer", "group") and shape.width * math.prod(shape.area) == 1:
            raise place.error(
                f"normalization = '{how}' of a width of 1 is always 0: set a larger width, or "
                "take it out"
            )
        self.module = _module(how, shape)
        self._only_values = how == "batch" and shape.form == "sequence"
        self._flat = how in ("group", "batch") and shape.form == "sequence"

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the normalized numbers, of the same shape."""
        if not self._flat:
            result: torch.Tensor = self.module(x)
            return result
        flat = x.reshape(-1, x.shape[-1])
        if self.training and self._only_values and mask is not None:
            values = mask.reshape(-1)
            done = torch.zeros_like(flat)
            done[values] = self.module(flat[values]).to(done.dtype)
        else:
            done = self.module(flat)
        return done.reshape(x.shape)


class BatchNorm(nn.Module):
    """torch's batch normalization; a training step of a single value, which has no deviation, is
    normalized by the running statistics, as when it scores."""

    def __init__(self, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized numbers, of the same shape."""
        of = self.module
        if self.training and x.numel() < 2 * x.shape[1]:
            return F.batch_norm(
                x, of.running_mean, of.running_var, of.weight, of.bias, False, 0.0, of.eps
            )
        result: torch.Tensor = of(x)
        return result


def _module(how: How, shape: Shape) -> nn.Module:
    image = shape.form == "image"
    if how == "none":
        return nn.Identity()
    if how == "batch":
        return BatchNorm(nn.BatchNorm2d(shape.width) if image else nn.BatchNorm1d(shape.width))
    if how == "group":
        return nn.GroupNorm(_groups(shape.width), shape.width)
    return nn.GroupNorm(1, shape.width) if image else nn.LayerNorm(shape.width)


def _groups(width: int) -> int:
    """Return the number of groups: the largest up to 8 that divides the channels."""
    most = max(1, min(MAX_GROUPS, width // GROUP_CHANNELS))
    return next(groups for groups in range(most, 0, -1) if width % groups == 0)


__all__ = ["How", "Normalization"]
