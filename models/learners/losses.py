"""Loss functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from engine.types import Features, Settings, UserError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(raw scores, target on the network's scale) -> mean loss, a scalar. A target between classes,
as in `engine.types.Tensors`, costs the weighted mean of its classes' losses."""


class LossSettings(Settings):
    """The loss's keys of ``[train]``.

    Attributes:
        loss: mse, mae or huber for regression, cross_entropy for classes; unless given,
            mse, or cross_entropy.
        huber_delta: where huber turns from square to straight, on the network's scale.
        class_weights: how much a row of each class counts, in class order; all the same
            unless given.
    """

    loss: Literal["mse", "mae", "huber", "cross_entropy"] | None = None
    huber_delta: float = Field(1.0, gt=0)
    class_weights: tuple[float, ...] | None = None


def make_loss(settings: LossSettings, features: Features, device: str = "cpu") -> Loss:
    """Return the loss for a task.

    Raises: UserError when it does not fit the task, or the weights do not fit the classes.
    """
    regression = features.task == "regression"
    name = settings.loss or ("mse" if regression else "cross_entropy")
    if regression == (name == "cross_entropy"):
        fitting = "mse, mae or huber" if regression else "cross_entropy"
        raise UserError(
            f"[train] loss = '{name}' does not fit [model] task = '{features.task}': "
            f"expected {fitting}."
        )
    weights = _class_weights(settings, features, device)
    if regression:
        return _regression(name, settings.huber_delta)
    return _multiclass(weights) if features.task == "multiclass" else _binary(weights)


def _class_weights(settings: LossSettings, features: Features, device: str) -> torch.Tensor | None:
    weights = settings.class_weights
    if weights is None:
        return None
    if features.task == "regression":
        raise UserError(
            "[train] class_weights is for classes, and [model] task is 'regression': take it out."
        )
    classes = len(features.classes)
    if len(weights) != classes:
        raise UserError(
            f"[train] class_weights expects one number for each of the {classes} classes "
            f"({', '.join(features.classes)}), got {len(weights)}."
        )
    if min(weights) < 0 or max(weights) == 0:
        raise UserError(
            "[train] class_weights expects numbers of 0 or more, at least one above 0, "
            f"got {list(weights)}."
        )
    return torch.tensor(weights, device=device)


def _regression(name: str, huber_delta: float) -> Loss:
    if name == "huber":
        return lambda raw, target: F.huber_loss(raw, target, delta=huber_delta)
    return F.l1_loss if name == "mae" else F.mse_loss


def _multiclass(weights: torch.Tensor | None) -> Loss:
    if weights is None:
        return lambda raw, target: F.cross_entropy(raw, target)

    def weighted(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.ndim == 1:
            return F.cross_entropy(raw, target, weights)
        loss = F.cross_entropy(raw, target, weights, reduction="sum")
        return loss / (target @ weights).sum()  # as for whole classes; torch divides by the rows

    return weighted


def _binary(weights: torch.Tensor | None) -> Loss:
    if weights is None:
        return lambda raw, target: F.binary_cross_entropy_with_logits(raw, target.float())

    def weighted(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if target.is_floating_point():
            loss = -target * weights[1] * F.logsigmoid(raw)
            loss -= (1 - target) * weights[0] * F.logsigmoid(-raw)
            return loss.sum() / weights[0].lerp(weights[1], target).sum()
        rows = weights[target]
        loss = F.binary_cross_entropy_with_logits(raw, target.float(), rows, reduction="sum")
        return loss / rows.sum()  # a weighted mean, as for more classes

    return weighted


__all__ = ["Loss", "LossSettings", "make_loss"]
