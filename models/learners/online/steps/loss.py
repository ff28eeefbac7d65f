"""The loss of a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import torch

from engine.types import Features, Tensors
from models.learners.labelled import target_of
from models.learners.online.contrastive import ContrastiveLoss
from models.learners.online.losses import Loss
from models.learners.online.scorer import Scorer
from models.learners.online.target_transform import AnyTargetScale
from models.learners.online.trainable import TrainableNetwork

N = TypeVar("N", bound=TrainableNetwork)


class StepLoss(Generic[N]):
    """The loss of the rows of a step, in the parts in which they pass through the network.

    Args:
        loss: of raw scores and targets in the network's scale.
        scorer: whose network is trained.
        features: what the network reads.
        accumulate: how many parts a step has.
    """

    def __init__(
        self, loss: Loss, scorer: Scorer[N], features: Features, *, accumulate: int
    ) -> None:
        self.loss = loss
        self._scorer = scorer
        self._features = features
        self._accumulate = accumulate
        self._grows = features.max_classes > 0

    def parts(
        self, rows: Tensors, scale: AnyTargetScale, raw: torch.Tensor | None
    ) -> Iterator[torch.Tensor]:
        """Yield the losses of the parts of a step, which add up to its mean loss.

        Args:
            raw: what the network says of all rows, where that is known.
        """
        if raw is not None:
            yield self.of(raw, rows, scale)
            return
        least = self._scorer.network.least_step_rows
        parts = max(1, min(self._accumulate, len(rows) // least))
        if parts > 1 and self._grows:  # each part has rows of a class
            rows = rows.take(np.flatnonzero((target_of(rows) >= 0).cpu().numpy()))
        ends = np.linspace(0, len(rows), parts + 1).astype(int).tolist()
        for start, stop in pairwise(ends):
            if start == stop:
                continue
            part = rows.slice(start, stop)
            loss = self.of(self._scorer.train(part), part, scale)
            yield loss if parts == 1 else loss * (len(part) / len(rows))

    def of(self, raw: torch.Tensor, rows: Tensors, scale: AnyTargetScale) -> torch.Tensor:
        """Return the mean loss of what the network says of rows."""
        target = target_of(rows)
        if self._grows and not (known := target >= 0).all():
            raw, target = raw[known], target[known]  # rows of a class that has left
        if self._features.task == "regression":
            target = scale.forward(target)
        if self._features.targets:
            there = ~target.isnan()
            raw, target = raw[there], target[there]
        if isinstance(self.loss, ContrastiveLoss):
            return self.loss(raw, target, self._scorer.class_means)
        return self.loss(raw, target)


__all__ = ["StepLoss"]
