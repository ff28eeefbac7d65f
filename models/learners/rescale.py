"""Rescales replayed rows: undoes the scale they had, and applies the current one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Features, Scale


class Rescale:
    """Undoes and repeats what stages did to the numeric features of a batch.

    A number of which nothing was known when it came was scaled to 0, and stays 0.

    Args:
        features: of the learner; does nothing where none of them is scaled.
    """

    def __init__(self, features: Features, device: str = "cpu") -> None:
        self._features = features
        self._device = device
        self._last: tuple[Sequence[Scale], tuple[torch.Tensor, torch.Tensor]] | None = None

    def unscale(self, x: torch.Tensor, scales: Sequence[Scale]) -> torch.Tensor:
        """Return the features before scaling, float64; NaN for what was lost."""
        if not self._features.scaled:
            return x
        shift, factor = self._affine(scales)
        # What did not vary was all the same: the shift.
        return x.double().div_(torch.where(factor == 0, torch.inf, factor)).add_(shift)

    def rescale(self, x: torch.Tensor, scales: Sequence[Scale]) -> torch.Tensor:
        """Return unscaled features in the scale of this batch; float32."""
        if not self._features.scaled:
            return x
        shift, factor = self._affine(scales)
        return (x - shift).mul_(factor).nan_to_num_(0.0, 0.0, 0.0).float()

    def _affine(self, scales: Sequence[Scale]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return shift and factor of each feature over all stages, shape (d,)."""
        if self._last is None or self._last[0] is not scales:
            self._last = scales, self._compose(scales)
        return self._last[1]

    def _compose(self, scales: Sequence[Scale]) -> tuple[torch.Tensor, torch.Tensor]:
        names = {name: i for i, name in enumerate(self._features.numeric)}
        shift, factor = np.zeros(len(names)), np.ones(len(names))
        for scale in scales:
            pairs = [(names[c], j) for j, c in enumerate(scale.columns) if c in names]
            if not pairs:
                continue
            at, of = (np.array(side) for side in zip(*pairs, strict=True))
            shift[at] += _over(scale.shift[of], factor[at])
            factor[at] *= scale.factor[of]
        return self._put(shift), self._put(factor)

    def _put(self, numbers: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._device)


def _over(shift: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(shift, factor, where=factor != 0, out=np.zeros_like(shift))


__all__ = ["Rescale"]
