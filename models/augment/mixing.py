"""Rows between rows: of two examples one in between, label included."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from engine.types import Features, Tensors, UserError
from models.augment.augmentation import AugmentSettings


class Mixup:
    """Puts in place of a row what lies between it and another row of the batch, label included
    (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018).

    Of the row remains a share drawn for each row from Beta(alpha, alpha), the rest is the other
    row's: numbers, and the target of a regression, lie on the line between the two. Codes of
    categories have nothing in between: each is the row's with the probability of its share, else
    the other's. The label of a class becomes shares of classes, so the loss is that of both labels,
    weighted.
    """

    class Settings(AugmentSettings):
        """``[augment.NAME]`` with ``kind = "mixup"``

        Attributes:
            alpha: small: most rows stay nearly what they are; 1: any share is as likely.
            probability: of a row to be mixed.
        """

        alpha: float = Field(0.2, gt=0, allow_inf_nan=False)
        probability: float = Field(1.0, ge=0, le=1)

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self._classes = 0

    def bind(self, features: Features, *, soft: bool = False) -> None:
        """See `models.augment.augmentation.Augment`."""
        self._classes = classes_of(features, soft=soft, where=f"[augment.{self.name}]")

    def apply(self, tensors: Tensors, chance: np.random.Generator) -> tuple[Tensors, int]:
        """See `models.augment.augmentation.Augment`."""
        assert tensors.target is not None
        n, device = len(tensors.target), tensors.target.device
        mixed = chance.random(n) < self.settings.probability
        if n < 2 or not mixed.any():
            return tensors, 0
        other = torch.from_numpy(chance.permutation(n)).to(device)
        drawn = chance.beta(self.settings.alpha, self.settings.alpha, n)
        rest = np.where(mixed, 1 - drawn, 0.0).astype(np.float32)
        kept = chance.random(tensors.categories.shape, np.float32) >= rest[:, None]
        away = torch.from_numpy(rest).to(device)
        codes = tensors.categories
        made = dataclasses.replace(
            tensors,
            numeric=tensors.numeric.lerp(tensors.numeric[other], away[:, None]),
            categories=codes.where(torch.from_numpy(kept).to(device), codes[other]),
            target=mixed_targets(tensors.target, other, away, self._classes),
        )
        return made, int(mixed.sum())


def classes_of(features: Features, *, soft: bool, where: str) -> int:
    """Between how many classes labels are mixed; 0 for a regression.

    Raises: UserError where the learner takes no targets between classes.
    """
    if features.task == "regression":
        return 0
    if not soft:
        raise UserError(
            f"{where} kind mixes labels, and this learner of [model] task = '{features.task}' "
            "takes whole classes only: take it out, or use kind = 'tabular' or 'linear'."
        )
    return len(features.classes)


def mixed_targets(
    target: torch.Tensor, other: torch.Tensor, away: torch.Tensor, classes: int
) -> torch.Tensor:
    """Targets between each row's and another's, float32.

    Args:
        target: shape (n,), or (n, k) where it was mixed before.
        other: row number of the other, shape (n,).
        away: share of the other, shape (n,), float32.
        classes: 0 for a regression.

    Returns:
        Shape (n,) of numbers (regression) or shares of class 1 (two classes); (n, classes) shares.
    """
    soft = target
    if classes > 2 and target.ndim == 1:
        soft = F.one_hot(target, classes)
    soft = soft.float()
    return soft.lerp(soft[other], away if soft.ndim == 1 else away[:, None])


__all__ = ["Mixup", "classes_of", "mixed_targets"]
