"""The supervised contrastive loss: vectors of a class come together, those of others move apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from models.learners.online.class_means import ClassMeans


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveLoss:
    """The supervised contrastive loss.

    The vectors of the rows of a step are brought to length 1. Of each row, the others of its class
    are its positives; its loss is the mean over them of the cross entropy of choosing the positive
    among all others, by their cosines divided by the temperature. A row without a positive costs
    nothing; of a step without any the loss is 0, with a gradient of 0.

    Source: Khosla et al., "Supervised contrastive learning", 2020 (the sum outside of the
    logarithm).

    A step of a young model has one row, and of a rare class there may be one in any step. So the
    means that classes have so far stand beside the rows, as further vectors to come close to or to
    move away from; nothing moves them here. Source of such means: Li et al., "Prototypical
    contrastive learning of unsupervised representations", 2021.

    Attributes:
        temperature: what cosines are divided by.
        weights: of the rows of each class, shape (classes,); None: all the same.
    """

    temperature: float
    weights: torch.Tensor | None = None

    def __call__(
        self, vectors: torch.Tensor, target: torch.Tensor, means: ClassMeans | None = None
    ) -> torch.Tensor:
        """Return the mean loss of the rows that have a positive, a scalar.

        Args:
            vectors: of any length, shape (n, width).
            target: classes, int64, (n,); or each one's share, as in `engine.types.Tensors`: then a
                pair is a positive to the degree to which both are of the same class.
            means: of classes, which stand beside the rows.
        """
        units = F.normalize(vectors)
        others, classes = units, target
        if means is not None:
            known = means.counts.nonzero().squeeze(1)
            others = torch.cat([units, means.directions[known]])
            classes = _with_classes(target, known)
        logits = units @ others.T / self.temperature
        own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(own, -torch.inf)
        positive = _alike(target, classes).masked_fill(own, 0.0)
        logs = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(own, 0.0)
        degree = positive.sum(1)
        losses = -(positive * logs).sum(1) / degree.clamp(min=torch.finfo(degree.dtype).tiny)
        counted = (degree > 0).to(losses.dtype)
        if self.weights is not None:
            counted = counted * self._weights_of(target)
        return (losses * counted).sum() / counted.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def _weights_of(self, target: torch.Tensor) -> torch.Tensor:
        assert self.weights is not None
        return _shares(target) @ self.weights if _is_soft(target) else self.weights[target]


def _is_soft(target: torch.Tensor) -> bool:
    return target.is_floating_point()


def _shares(target: torch.Tensor) -> torch.Tensor:
    """Return the share of each class, shape (n, classes), of targets between classes."""
    return target if target.ndim == 2 else torch.stack([1 - target, target], 1)


def _with_classes(target: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the targets, and below them these classes."""
    if not _is_soft(target):
        return torch.cat([target, classes])
    shares = _shares(target)
    return torch.cat([shares, F.one_hot(classes, shares.shape[1]).to(shares.dtype)])


def _alike(target: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return to which degree each target is of the class of each of the others, (n, others)."""
    if not _is_soft(target):
        return (target.unsqueeze(1) == others).to(torch.float32)
    return _shares(target) @ _shares(others).T


__all__ = ["ContrastiveLoss"]
