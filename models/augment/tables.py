"""Augments tables: adds noise to numbers, drops values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine.types import Names, Tensors
from engine.types.arrays import Ints
from models.augment.augmentation import Augment, AugmentSettings, Context
from models.augment.columns import places


class Jitter(Augment):
    """Adds normal noise of mean 0 to numbers, independent for each value.

    Sources: Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", 1995.
    """

    class Settings(AugmentSettings):
        """``[augment.NAME]`` with ``kind = "jitter"``

        Attributes:
            columns: numeric features, names or globs.
            scale: standard deviation of the noise in the features' own unit as the model gets them:
                for a feature that was standardized, a share of its deviation.
            probability [share]: of a row to be changed.
        """

        columns: Names = ("*",)
        scale: float = Field(0.1, ge=0, allow_inf_nan=False)
        probability: float = Field(1.0, ge=0, le=1)

    settings: Jitter.Settings
    _at: Ints = np.empty(0, np.int64)

    def bind(self, context: Context) -> None:
        self._at = places(self.settings.columns, context.features.numeric, where=self.where)

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
        settings, n = self.settings, len(tensors.numeric)
        rows = rng.random(n) < settings.probability
        if not settings.scale or not rows.any():
            return tensors, 0
        noise = rng.standard_normal((n, len(self._at)), np.float32)
        noise *= np.where(rows, np.float32(settings.scale), np.float32(0))[:, None]
        delta, at = _parts(tensors.numeric, noise, self._at)
        numeric = tensors.numeric + delta if at is None else tensors.numeric.index_add(1, at, delta)
        return dataclasses.replace(tensors, numeric=numeric), int(rows.sum())


class FeatureDropout(Augment):
    """Replaces some values as if they were unknown: numbers by `value`, category codes by 0. The
    model learns to do without any one of them.

    Sources: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders",
    2008 (masking noise).
    """

    class Settings(AugmentSettings):
        """``[augment.NAME]`` with ``kind = "feature_dropout"``

        Attributes:
            columns: features, numeric ones or categories, names or globs.
            share [share]: of the values that are replaced (0-1), each on its own.
            value: what a number becomes; 0 is the mean of a feature that was standardized.
        """

        columns: Names = ("*",)
        share: float = Field(0.1, ge=0, le=1)
        value: float = Field(0.0, allow_inf_nan=False)

    settings: FeatureDropout.Settings
    _at: Ints = np.empty(0, np.int64)

    def bind(self, context: Context) -> None:
        names = [*context.features.numeric, *context.features.categories]
        self._at = places(self.settings.columns, names, where=self.where)

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
        n, width = tensors.numeric.shape
        drawn = rng.random((n, len(self._at)), np.float32) < self.settings.share
        if not drawn.any():
            return tensors, 0
        gone = np.zeros((n, width + tensors.categories.shape[1]), np.bool_)
        gone[:, self._at] = drawn
        mask = torch.from_numpy(gone).to(tensors.numeric.device)
        result = dataclasses.replace(
            tensors,
            numeric=tensors.numeric.masked_fill(mask[:, :width], self.settings.value),
            categories=tensors.categories.masked_fill(mask[:, width:], 0),
        )
        return result, int(drawn.any(axis=1).sum())


def _parts(
    numeric: torch.Tensor, values: NDArray[Any], at: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the values as a tensor like `numeric`, and the columns they belong to; None for
    all."""
    tensor = torch.from_numpy(values).to(numeric.device)
    if len(at) == numeric.shape[1]:
        return tensor, None
    return tensor, torch.from_numpy(at).to(numeric.device)


__all__ = ["FeatureDropout", "Jitter"]
