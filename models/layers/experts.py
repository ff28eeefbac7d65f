"""Mixture of experts: each vector goes through a few of many dense layers."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from models.layers.layer import (
    ACTIVATIONS,
    Activation,
    Block,
    BlockSettings,
    Layer,
    Signal,
)
from models.layers.shape import Place, Shape

LOAD_RATE = 0.01
"""The weight of a step in the average of loads."""


class ExpertsSettings(BlockSettings):
    """Dense layers of which each vector goes through those that a router chooses for it.

    Attributes:
        count: number of experts.
        top: experts of each vector; their results are added, weighted by the router.
        width: number of units of each expert.
        activation: function of their results.
        balance: weight of the loss that keeps the experts equally busy, beside the model's own.
    """

    kind: Literal["experts"] = "experts"
    count: PositiveInt = 8
    top: PositiveInt = 2
    width: PositiveInt = 128
    activation: Activation = "relu"
    balance: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.top > self.count:
            raise ValueError(f"expected top <= count, got top = {self.top}, count = {self.count}")
        return self

    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer, and the vector or sequence it makes. Raises: UserError"""
        place.require(given, "vector", "sequence")
        made = Shape(form=given.form, width=self.width)
        return Block(Experts(self, given.width), self, given, made, place), made


class Experts(Layer):
    """(n, given) or (n, length, given) -> (n, width) or (n, length, width).

    Each expert computes only the vectors that chose it; there is no limit of them, so the result of
    a row does not depend on the others. Padding goes to no expert.

    Attributes:
        load: shape (count,): each expert's share of the vectors of the last hundred or so steps.
    """

    load: torch.Tensor

    def __init__(self, settings: ExpertsSettings, given: int) -> None:
        super().__init__()
        self._top = settings.top
        self._balance = settings.balance
        self.router = nn.Linear(given, settings.count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(given, settings.width), ACTIVATIONS[settings.activation]())
            for _ in range(settings.count)
        )
        self._width = settings.width
        self.register_buffer("load", torch.full((settings.count,), 1 / settings.count))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        vectors = x.reshape(-1, x.shape[-1])
        shares = self.router(vectors).softmax(1)
        weights, chosen = shares.topk(self._top, dim=1)
        if self._top > 1:
            weights = weights / weights.sum(1, keepdim=True)
        if mask is not None:
            chosen = chosen.masked_fill(~mask.reshape(-1, 1), -1)
        result = self._mixed(vectors, weights, chosen)
        if self.training:
            result = self._balanced(result, shares, chosen)
        return result.reshape(*x.shape[:-1], self._width), mask

    def _mixed(
        self, vectors: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of what the chosen experts make, (vectors, width)."""
        result = torch.zeros_like(weights[:, :1]).expand(-1, self._width)
        for number, expert in enumerate(self.experts):
            row, rank = (chosen == number).nonzero(as_tuple=True)
            part = expert(vectors[row]) * weights[row, rank].unsqueeze(1)
            result = result.index_put((row,), part.to(result.dtype), accumulate=True)
        return result

    def _balanced(
        self, result: torch.Tensor, shares: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """Average the load, and let the result carry the balance loss: count * sum of (an expert's
        share of the choices * its mean share by the router), 1 where all are equally busy.

        Source: Fedus et al., "Switch transformers", 2021.
        """
        count = len(self.experts)
        loads = (chosen.reshape(-1, 1) == torch.arange(count, device=chosen.device)).sum(0)
        there = (chosen[:, :1] >= 0).to(shares.dtype)
        mean = (shares * there).sum(0) / there.sum().clamp(min=1)
        busy = loads / loads.sum().clamp(min=1)
        self.load.lerp_(torch.where(loads.any(), busy, self.load), LOAD_RATE)
        loss = self._balance * count * (busy * mean).sum()
        carried: torch.Tensor = WithLoss.apply(result, loss)
        return carried


class WithLoss(torch.autograd.Function):
    """Returns a tensor unchanged; where a loss is made of it, `loss` is minimized too.

    So a layer has a loss of its own, and whoever trains the network need not know of it.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of the tensor, and that of the loss, which is 1."""
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(loss)


__all__ = ["Experts", "ExpertsSettings"]
