"""Loss functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from engine.types import Features, UserError, first_line
from engine.user_code.imports import imported
from models.learners.online.contrastive import ContrastiveLoss
from models.learners.quantiles import QuantileSettings

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(raw scores, target on the network's scale) -> mean loss, a scalar. A target between classes,
as in `engine.types.Tensors`, costs the weighted mean of its classes' losses. Of several targets
those that are there come one after the other, shape (numbers,)."""


REGRESSION = ("mse", "mae", "huber", "quantile", "poisson", "tweedie")
CLASSES = ("cross_entropy", "focal", "contrastive")
BINARY = (*CLASSES, "fake_negatives")
KEYS = {
    "huber_delta": "huber",
    "quantile": "quantile",
    "quantiles": "quantile",
    "tweedie_power": "tweedie",
    "focal_gamma": "focal",
    "temperature": "contrastive",
}
"""Key -> the loss that it is for."""
OwnLoss = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class LossSettings(QuantileSettings):
    """The loss's keys of ``[train]``.

    Attributes:
        loss: mse, mae, huber, quantile, poisson or tweedie for regression, cross_entropy, focal or
            contrastive for classes, and fake_negatives for two; unless given, mse, or
            cross_entropy. poisson is for counts, tweedie for amounts that are often 0: the network
            learns the logarithm of the mean, predictions are above 0, and labels below 0 are
            rejected. contrastive learns a vector of length 1 for each row ([model] vector_width),
            close to those of its class and far from others, and predicts the class whose mean
            vector is nearest; the model file gives the vectors too. fake_negatives is
            cross entropy with importance weights, for rows that are learned as the first class at
            once and once more as the second if that is reported ([labels] on_missing and
            corrections, with a short horizon): its probabilities are right for them. Or a function
            of yours, ``package.module:function``, that returns the mean loss of raw scores and
            targets, on the network's scale; of several targets, of all their numbers together.
        huber_delta: where huber turns from square to straight, on the network's scale.
        tweedie_power: for tweedie, the power of the mean that the variance follows: near 1 as
            counts have it, near 2 as amounts.
        focal_gamma: how much less a row counts that is predicted well already, for focal.
        temperature: for contrastive, what cosines are divided by: a lower one looks more at the
            nearest vectors of other classes.
        class_weights: how much a row of each class counts, in class order; all the same
            unless given.
    """

    loss: (
        Literal[
            "mse",
            "mae",
            "huber",
            "quantile",
            "poisson",
            "tweedie",
            "cross_entropy",
            "focal",
            "contrastive",
            "fake_negatives",
        ]
        | OwnLoss
        | None
    ) = None
    huber_delta: float = Field(1.0, gt=0)
    tweedie_power: float = Field(1.5, gt=1, lt=2)
    focal_gamma: float = Field(2.0, ge=0)
    temperature: float = Field(0.1, gt=0)
    class_weights: tuple[float, ...] | None = None

    @property
    def deviance_power(self) -> float | None:
        """The power of the mean that the variance follows, of a loss of rates: 1 for poisson; None
        for the others."""
        if self.loss == "poisson":
            return 1.0
        return self.tweedie_power if self.loss == "tweedie" else None


def make_loss(settings: LossSettings, features: Features, device: str = "cpu") -> Loss:
    """Return the loss for a task.

    Raises: UserError when it does not fit the task, or the weights do not fit the classes.
    """
    regression = features.task == "regression"
    name = settings.loss or ("mse" if regression else "cross_entropy")
    fitting = REGRESSION if regression else BINARY if features.task == "binary" else CLASSES
    if name not in fitting and ":" not in name:
        raise UserError(
            f"[train] loss = '{name}' does not fit [model] task = '{features.task}': "
            f"expected {', '.join(fitting[:-1])} or {fitting[-1]}."
        )
    for key, of in KEYS.items():
        if key in settings.model_fields_set and name != of:
            raise UserError(f"[train] {key} is for loss = '{of}', and loss is '{name}'.")
    weights = _class_weights(settings, features, device)
    if ":" in name:
        if weights is not None:
            raise UserError(
                f"[train] class_weights is for the losses of headrace, and loss is '{name}': weigh "
                "the classes there."
            )
        return _own(name, features, device)
    if features.quantiles:
        return _pinball(features.quantiles, device)
    if name == "fake_negatives":
        if weights is not None:
            raise UserError(
                "[train] loss = 'fake_negatives' weighs the classes itself: take class_weights out."
            )
        return _fake_negatives
    if regression:
        return _regression(name, settings, device)
    if name == "contrastive":
        return ContrastiveLoss(temperature=settings.temperature, weights=weights)
    if name == "focal":
        return _focal(weights, settings.focal_gamma)
    return _multiclass(weights) if features.task == "multiclass" else _binary(weights)


def _class_weights(settings: LossSettings, features: Features, device: str) -> torch.Tensor | None:
    weights = settings.class_weights
    if weights is None:
        return None
    if features.task == "regression":
        raise UserError(
            "[train] class_weights is for classes, and [model] task is 'regression': take it out."
        )
    if features.max_classes:
        raise UserError(
            "[train] class_weights needs to know the classes: name them in [model] classes, or "
            "take it out."
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


def _regression(name: str, settings: LossSettings, device: str) -> Loss:
    if name == "huber":
        return lambda raw, target: F.huber_loss(raw, target, delta=settings.huber_delta)
    if name == "quantile":
        one = _pinball([settings.quantile], device)
        return lambda raw, target: one(raw.unsqueeze(1), target)
    if name == "poisson":
        return F.poisson_nll_loss
    if name == "tweedie":
        return _tweedie(settings.tweedie_power)
    return F.l1_loss if name == "mae" else F.mse_loss


def _pinball(quantiles: Sequence[float], device: str) -> Loss:
    """Return the pinball loss, summed over the quantiles: each output learns as if it were alone.

    Source: Koenker & Bassett, "Regression quantiles", 1978.
    """
    shares = torch.tensor(quantiles, device=device)

    def pinball(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        gap = target.unsqueeze(1) - raw
        return torch.maximum(shares * gap, (shares - 1) * gap).mean(0).sum()

    return pinball


def _tweedie(power: float) -> Loss:
    """Return half the deviance of Tweedie's distribution, less what does not depend on the score,
    which is the logarithm of the mean.

    Source: Jorgensen, "The Theory of Dispersion Models", 1997.
    """

    def tweedie(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mean = torch.exp((2 - power) * raw) / (2 - power)
        return (mean - target * torch.exp((1 - power) * raw) / (1 - power)).mean()

    return tweedie


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


def _fake_negatives(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return cross entropy with importance weights for rows of which all are learned as class 0 and
    those of class 1 again as that: 1 + p for class 1, (1 - p) (1 + p) for class 0.

    Source: Ktena et al., "Addressing delayed feedback for continuous training with neural networks
    in CTR prediction", 2019.
    """
    p, share = torch.sigmoid(raw.detach()), target.float()
    loss = share * (1 + p) * F.logsigmoid(raw) + (1 - share) * (1 - p * p) * F.logsigmoid(-raw)
    return -loss.mean()


def _focal(weights: torch.Tensor | None, gamma: float) -> Loss:
    """Return the focal loss: cross entropy times (1 - probability of the class) ** gamma.

    Source: Lin et al., "Focal loss for dense object detection", 2017.
    """

    def focal(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logs = F.log_softmax(raw if raw.ndim == 2 else torch.stack([-raw, raw], 1) / 2, 1)
        shares = _shares(target, logs.shape[1])
        counted = shares if weights is None else shares * weights
        losses = counted * -logs * (1 - logs.exp()).clamp(min=1e-7).pow(gamma)
        return losses.sum() / counted.sum()

    return focal


def _shares(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Return each class's share of the targets, shape (n, classes)."""
    if not target.is_floating_point():
        return F.one_hot(target, classes).float()
    return target if target.ndim == 2 else torch.stack([1 - target, target], 1)


def _own(name: str, features: Features, device: str) -> Loss:
    """Return a loss of the user's, tried on two made rows.

    Raises: UserError if it cannot be imported, or does not return a loss.
    """
    own = imported(name, "[train] loss")
    outputs = 1 if features.targets else features.most_outputs
    shape = (2,) if outputs == 1 else (2, outputs)
    raw = torch.zeros(shape, device=device, requires_grad=True)
    regression = features.task == "regression"
    target = torch.tensor([1, 0], dtype=torch.float32 if regression else torch.int64, device=device)
    try:
        loss = own(raw, target)
    except Exception as error:
        raise UserError(
            f"[train] loss '{name}' raises {type(error).__name__}: {first_line(error)}, when it "
            f"gets scores of shape {shape} and targets of shape (2,)."
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.is_floating_point():
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)[:40]
        raise UserError(f"[train] loss '{name}' returns {got}, expected one number: the mean loss.")
    if not loss.requires_grad:
        raise UserError(f"[train] loss '{name}' returns a number without a gradient.")

    def called(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = own(raw, target)
        return result

    return called


__all__ = ["Loss", "LossSettings", "make_loss"]
