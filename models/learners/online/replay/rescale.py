"""Rescales replayed rows: undoes the scale they had, and applies the current one."""

from __future__ import annotations

import torch

from engine.columnar.numeric_scale import NumericScale
from engine.types import Features, Scales, Tensors, even_parts


class Rescale:
    """Undoes and repeats what stages did to the numeric features of a batch.

    A number of which nothing was known when it came was scaled to 0, and stays 0.

    Args:
        features: of the learner; does nothing where none of them is scaled.
    """

    def __init__(self, features: Features, device: str = "cpu") -> None:
        self._features = features
        self._device = device
        self._last: tuple[Scales, tuple[torch.Tensor, torch.Tensor]] | None = None

    def unscale(self, rows: Tensors) -> torch.Tensor:
        """Return the numeric features before scaling, float64; NaN for what was lost."""
        if not self._features.scaled:
            return rows.numeric
        parts = [
            self._unscaled(rows.numeric[at], scales)
            for at, scales in even_parts(rows.scales, len(rows))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rescale(self, x: torch.Tensor, scales: Scales) -> torch.Tensor:
        """Return unscaled features in the scale of the last row of this batch; float32."""
        if not self._features.scaled:
            return x
        shift, factor = self._affine(scales)
        return (x - shift).mul_(factor).nan_to_num_(0.0, 0.0, 0.0).float()

    def _unscaled(self, x: torch.Tensor, scales: Scales) -> torch.Tensor:
        shift, factor = self._affine(scales)
        # What did not vary was all the same: the shift.
        return x.double().div_(torch.where(factor == 0, torch.inf, factor)).add_(shift)

    def _affine(self, scales: Scales) -> tuple[torch.Tensor, torch.Tensor]:
        """Return shift and factor of each feature over all stages, shape (d,)."""
        if self._last is None or self._last[0] is not scales:
            scale = NumericScale.of(self._features.numeric, scales)
            numbers = (scale.shift, scale.factor)
            shift, factor = (torch.from_numpy(each).to(self._device) for each in numbers)
            self._last = scales, (shift, factor)
        return self._last[1]


__all__ = ["Rescale"]
