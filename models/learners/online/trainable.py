"""The contract of a network that a learner trains."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.types import Tensors
from models.carry import Carry


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that learn with the same step size.

    Attributes:
        weights, gradient: shape (p,), parts of the network's flat tensors.
        lr_scale: their step size, as a share of ``[train] lr``.
    """

    weights: torch.Tensor
    gradient: torch.Tensor
    lr_scale: float = 1.0


class TrainableNetwork(ABC):
    """Weights, and the raw scores they give. All dense weights are views of one flat tensor, and
    their gradients of another, so that optimizer, norm, averaging and snapshot are one operation
    each instead of one per layer.

    Raw scores have the shape (n,) for one output, else (n, outputs); without a link function.

    Attributes:
        flat, gradient: shape (p,), float32.
        tables: weights apart from these, with sparse gradients.
    """

    flat: torch.Tensor
    gradient: torch.Tensor
    tables: Sequence[torch.Tensor] = ()

    @abstractmethod
    def raw(self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None = None) -> torch.Tensor:
        """Return raw scores as they are used.

        Args:
            numeric: the scaled `rows.numeric`.
            carry: the states of the rows, of a network with a state.
        """

    @abstractmethod
    def train(
        self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None = None
    ) -> torch.Tensor:
        """Return raw scores to learn from, for instance with dropout."""

    @abstractmethod
    def weights(self) -> dict[str, np.ndarray]:
        """Return name -> everything that `load` restores, copied."""

    @abstractmethod
    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Load a copy of what `weights` returned."""

    @property
    def trains_on_scores(self) -> bool:
        """Whether `train` and `raw` return the same scores."""
        return True

    @property
    def least_step_rows(self) -> int:
        """The fewest rows that a step makes sense of."""
        return 1

    @property
    def count(self) -> int:
        """The number of weights."""
        return self.flat.numel() + sum(table.numel() for table in self.tables)

    @property
    def nbytes(self) -> int:
        """The bytes of all weights. Asked for with every batch."""
        return self.flat.nbytes + sum(table.nbytes for table in self.tables)

    def parameters(self) -> list[torch.Tensor]:
        """Return the tensors that hold all weights that learn, none twice."""
        return [self.flat.detach(), *(table.detach() for table in self.tables)]

    def groups(self) -> list[ParameterGroup]:
        """Return the parts of `flat`, by step size."""
        return [ParameterGroup(weights=self.flat, gradient=self.gradient)]

    def buffers(self) -> Sequence[torch.Tensor]:
        """Return what a network keeps besides weights, such as running means."""
        return ()

    def without_gradient(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which `raw` is called."""
        return torch.inference_mode()

    def reset_outputs(self, slots: Sequence[int]) -> None:
        """Forget what these outputs have learned, of the network and of no other part; a network
        that does not know its last layer leaves them as they are."""
        return

    def seed(self, seed: int) -> None:
        """Seed the random numbers of the next calls of `train`."""
        return

    def undo(self) -> None:
        """Restore the buffers of before the calls of `train` whose step is not taken."""
        return

    def settle(self) -> None:
        """Begin another step: `undo` goes back to here."""
        return


__all__ = ["ParameterGroup", "TrainableNetwork"]
