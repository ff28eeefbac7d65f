"""Mixes pairs of rows, labels included."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional as F

from engine.types import Features, Tensors, UserError
from engine.types.arrays import Ints
from models.augment import pixels
from models.augment.augmentation import Augment, AugmentSettings, Context

Singles = NDArray[np.float32]


class MixSettings(AugmentSettings):
    """Settings of every kind that mixes rows.

    Attributes:
        alpha: what stays of a row is a share from Beta(alpha, alpha). Small: most rows stay nearly
            what they are, or become nearly another; 1: any share is as likely.
        probability [share]: of a row to be mixed.
    """

    alpha: float = Field(1.0, gt=0, allow_inf_nan=False)
    probability: float = Field(1.0, ge=0, le=1)


class Mixing(Augment):
    """The base class of mixing augments: each row's partner, the share, and how numbers, codes
    and labels are mixed.

    Numbers, and the target of a regression, lie on the line between the two. Codes of categories
    have nothing in between: each is the row's with the probability of its share, else the other's.
    The label of a class becomes shares of classes, so the loss is that of both labels, weighted.
    """

    def __init__(self, name: str, settings: Any) -> None:
        super().__init__(name, settings)
        self._classes = 0

    def bind(self, context: Context) -> None:
        features = context.features
        self._classes = _classes_of(features, soft=context.soft, where=self.where)
        lists = [*features.ragged, *features.padded, *features.sparse, *features.arrays]
        if lists:
            raise UserError(
                f"{self.where} kind mixes rows, and there is nothing between two lists, as of "
                f"'{lists[0]}': take it out, or the lists."
            )

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
        n = len(tensors)
        mixed = rng.random(n) < self.settings.probability
        if n < 2 or not mixed.any():
            return tensors, 0
        other = rng.permutation(n)
        drawn = rng.beta(self.settings.alpha, self.settings.alpha, n)
        away = np.where(mixed, 1 - drawn, 0.0).astype(np.float32)
        images, away = self._images(tensors, other, away, rng)
        kept = rng.random(tensors.categories.shape, np.float32) >= away[:, None]
        device = tensors.numeric.device
        at, share = torch.from_numpy(other).to(device), torch.from_numpy(away).to(device)
        codes = tensors.categories
        assert tensors.target is not None
        result = dataclasses.replace(
            tensors,
            numeric=tensors.numeric.lerp(tensors.numeric[at], share[:, None]),
            categories=codes.where(torch.from_numpy(kept).to(device), codes[at]),
            target=mixed_targets(tensors.target, at, share, self._classes),
            images=images,
        )
        return result, int(mixed.sum())

    def _images(
        self, tensors: Tensors, other: Ints, away: Singles, rng: np.random.Generator
    ) -> tuple[dict[str, torch.Tensor], Singles]:
        """Return the mixed images, and the share of the partner in them."""
        raise NotImplementedError


class Mixup(Mixing):
    """Replaces a row by an interpolation with another row of the batch, label included (Zhang et
    al., "mixup: Beyond Empirical Risk Minimization", 2018). Images are blended."""

    class Settings(MixSettings):
        """``[augment.NAME]`` with ``kind = "mixup"``"""

        alpha: float = Field(0.2, gt=0, allow_inf_nan=False)

    def _images(
        self, tensors: Tensors, other: Ints, away: Singles, rng: np.random.Generator
    ) -> tuple[dict[str, torch.Tensor], Singles]:
        mixed = {c: pixels.blended(image, other, away) for c, image in tensors.images.items()}
        return mixed, away


class Cutmix(Mixing):
    """Pastes a box of another row's image, and mixes the labels by its area (Yun et al.,
    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    2019). The box has the proportions of the image; the part beyond an edge is cut off, and the
    share with it. Numbers and codes are mixed by that share."""

    class Settings(MixSettings):
        """``[augment.NAME]`` with ``kind = "cutmix"``"""

    def bind(self, context: Context) -> None:
        super().bind(context)
        images = context.features.images
        if len(images) != 1:
            raise UserError(
                f"{self.where} kind = 'cutmix' expects one image in [model] images, got "
                f"{len(images)}: take it out, or use 'mixup'."
            )

    def _images(
        self, tensors: Tensors, other: Ints, away: Singles, rng: np.random.Generator
    ) -> tuple[dict[str, torch.Tensor], Singles]:
        ((name, images),) = tensors.images.items()
        high, wide = images.shape[2:]
        middle, side = rng.random((2, len(away))), np.sqrt(away)
        top, bottom = _edges(middle[0], side, high)
        left, right = _edges(middle[1], side, wide)
        area = ((bottom - top) * (right - left)).astype(np.float32) / np.float32(high * wide)
        return {name: pixels.pasted(images, other, top, left, bottom, right)}, area


def mixed_targets(
    target: torch.Tensor, other: torch.Tensor, away: torch.Tensor, classes: int
) -> torch.Tensor:
    """Return targets between each row's and its partner's, float32.

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


def _edges(middle: NDArray[np.float64], side: Singles, size: int) -> tuple[Ints, Ints]:
    """Return begin and end of boxes in pixels; `middle` and `side` are shares of the size."""
    centre, half = np.floor(middle * size), np.floor(side * size / 2)
    begin, end = np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)
    return begin.astype(np.int64), end.astype(np.int64)


def _classes_of(features: Features, *, soft: bool, where: str) -> int:
    """Return the number of classes between which labels are mixed; 0 for a regression.

    Raises: UserError if the learner takes no targets between classes.
    """
    if features.task == "regression":
        return 0
    if not soft:
        raise UserError(
            f"{where} kind mixes labels, and this learner of [model] task = '{features.task}' "
            "takes whole classes only: take it out, or use kind = 'tabular' or 'linear'."
        )
    if features.max_classes:
        raise UserError(
            f"{where} kind mixes labels, and needs to know the classes: name them in [model] "
            "classes, or take it out."
        )
    return len(features.classes)


__all__ = ["Cutmix", "MixSettings", "Mixing", "Mixup", "mixed_targets"]
