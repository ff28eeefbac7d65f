"""One optimizer step: regularization, the finite check, clipping, the schedule, the average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from engine.types import Settings, UserError
from models.learners.online.trainable import ParameterGroup, TrainableNetwork

BETAS = 0.9, 0.999
EPSILON = 1e-8


class OptimizerSettings(Settings):
    """The optimizer's keys of ``[train]``.

    Attributes:
        optimizer: sgd, adam or adamw (decay apart from the gradient).
        lr: step size, at its highest.
        momentum: momentum of the optimizer sgd.
        schedule: ``constant``; ``inverse_sqrt`` (falls with the square root of the steps after the
            warm-up); ``cosine`` (falls to `lr_floor` within `schedule_steps`, and stays).
        warmup_steps [steps]: steps over which the step size rises in a line to `lr`.
        schedule_steps [steps]: steps until the end of the cosine `schedule`.
        lr_floor [share]: lowest step size of a schedule, as a share of `lr`.
        l1: weight of the sum of the absolute weights, in the gradient before clipping.
        weight_decay: weight of half the sum of the squared weights (adamw: the decay); sparse
            embeddings get neither.
        max_grad_norm: longest gradient; nothing is clipped unless given.
        ema_decay: decay per step of an average of the weights that predicts in their place; 0 is
            off.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    schedule: Literal["constant", "inverse_sqrt", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    schedule_steps: int | None = Field(None, ge=1)
    lr_floor: float = Field(0.0, ge=0, le=1)
    l1: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)


class Optimizer:
    """Steps on a network's weights.

    Args:
        network: whose weights change.
        average: whose weights follow as their average, or None.

    Attributes:
        steps: taken so far.

    Raises: UserError for settings that do not fit together.
    """

    def __init__(
        self,
        settings: OptimizerSettings,
        network: TrainableNetwork,
        average: TrainableNetwork | None = None,
    ) -> None:
        _check(settings, network)
        self.settings = settings
        self.steps = 0
        self._network = network
        self._average = average
        self._parts: list[_Dense | _Sparse] = [_Dense(settings, own) for own in network.groups()]
        if network.tables:
            self._parts.append(_Sparse(settings, network))
        self._scheduled = settings.schedule != "constant" or settings.warmup_steps > 0

    def step(self, losses: Iterable[torch.Tensor]) -> tuple[float, bool]:
        """Take one optimizer step on the sum of losses; return it and whether the step was taken.

        Where loss or gradient is not finite, nothing changes.

        Args:
            losses: each is asked for when the gradient of the one before is computed.
        """
        loss = self._backward(losses)
        squares = [torch.linalg.vector_norm(self._network.gradient)]
        squares += [torch.linalg.vector_norm(table.grad._values()) for table in self._sparse()]
        # One transfer from the device, the only one a step.
        value, *norms = torch.stack([loss, *squares]).tolist()
        norm = math.hypot(*norms)
        if not math.isfinite(value) or not math.isfinite(norm):
            self._network.undo()
            self._network.settle()
            return value, False
        self._clip(norm)
        lr = self.settings.lr * (self.lr_share(self.steps) if self._scheduled else 1.0)
        for part in self._parts:
            part.step(lr)
        self.steps += 1
        self._network.settle()
        self._follow()
        return value, True

    @property
    def nbytes(self) -> int:
        """The bytes of gradient, moments and average."""
        tensors = [self._network.gradient]
        for part in self._parts:
            for moments in part.state.values():
                tensors += [value for value in moments.values() if torch.is_tensor(value)]
        average = 0 if self._average is None else self._average.nbytes
        return sum(tensor.nbytes for tensor in tensors) + average

    def state_dict(self) -> dict[str, Any]:
        """Return steps and moments, copied."""
        return {"steps": self.steps, "moments": [_snapshot(part.state) for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the `state_dict` of the same kind of optimizer. Raises: ValueError if its
        moments differ: torch would silently reset them."""
        self.steps = state["steps"]
        names = self._moments if self.steps else set()
        for part, moments in zip(self._parts, state["moments"], strict=True):
            known = [set(own) for own in moments.values()] or [set()] * isinstance(part, _Dense)
            if any(own != names for own in known):
                raise ValueError(f"expected moments {sorted(names)}, got {sorted(*known[:1])}")
            if not {*moments} <= {str(weight) for weight in range(part.count)}:
                raise ValueError(f"expected moments of {part.count} weights, got {sorted(moments)}")
            part.restore(_tensors(moments))

    @property
    def _moments(self) -> set[str]:
        """Return the names of the moments after the first step."""
        if self.settings.optimizer != "sgd":
            return {"step", "exp_avg", "exp_avg_sq"}
        return {"momentum_buffer"} if self.settings.momentum else set()

    def lr_share(self, step: int) -> float:
        """Return the step size of step `step` (from 0), as a share of `lr`. A function of the step
        alone: torch's schedules keep a state, and an optimizer of theirs takes 1.4 s to make."""
        settings = self.settings
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        share = 1.0
        if settings.schedule == "inverse_sqrt":
            share = math.sqrt(max(settings.warmup_steps, 1) / max(step, settings.warmup_steps, 1))
        elif settings.schedule == "cosine":
            assert settings.schedule_steps is not None
            length = max(settings.schedule_steps - settings.warmup_steps, 1)
            done = min(1.0, (step - settings.warmup_steps) / length)
            share = (1 + math.cos(math.pi * done)) / 2
        return max(share, settings.lr_floor)

    def _backward(self, losses: Iterable[torch.Tensor]) -> torch.Tensor:
        """Compute the gradient of the sum of losses; return that, nan of none."""
        network = self._network
        network.gradient.zero_()
        for table in network.tables:
            table.grad = None
        values = []
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
            values.append(loss.detach().float())
        for table in self._sparse():
            table.grad = table.grad.coalesce()
        if self.settings.l1:
            network.gradient.add_(network.flat.detach().sign(), alpha=self.settings.l1)
        if len(values) == 1:
            return values[0]
        return torch.stack(values).sum() if values else network.flat.new_tensor(math.nan)

    def _sparse(self) -> list[Any]:
        return [table for table in self._network.tables if table.grad is not None]

    def _clip(self, norm: float) -> None:
        limit = self.settings.max_grad_norm
        if limit is None or norm <= limit:
            return
        self._network.gradient.mul_(limit / norm)
        for table in self._sparse():
            table.grad._values().mul_(limit / norm)

    def _follow(self) -> None:
        """Update the average. Young averages follow faster, (1 + steps) / (10 + steps), or the
        random initial weights would remain in them."""
        if self._average is None:
            return
        decay = min(self.settings.ema_decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self._average.parameters(), self._network.parameters(), strict=True)
        for average, weights in pairs:
            average.lerp_(weights, 1 - decay)
        for buffer, newest in zip(self._average.buffers(), self._network.buffers(), strict=True):
            buffer.copy_(newest)


def _check(settings: OptimizerSettings, network: TrainableNetwork) -> None:
    if settings.momentum and settings.optimizer != "sgd":
        raise UserError(
            f"[train] momentum is a setting of sgd, and optimizer is '{settings.optimizer}': "
            "take it out."
        )
    if settings.momentum and network.tables:
        raise UserError(
            "[model] sparse_embeddings does not go with [train] momentum: take one of them out."
        )
    if settings.schedule == "cosine" and settings.schedule_steps is None:
        raise UserError(
            "[train] schedule = 'cosine' needs schedule_steps, the number of steps until its end."
        )


State = dict[int, dict[str, Any]]
"""Moments by name, by the index of their tensor."""


class _Dense:
    """torch's fused step on one flat tensor, in its functional form: the classes of ``torch.optim``
    load the compiler, which is half of a learning engine's start."""

    count = 1
    """The number of tensors it updates."""

    def __init__(self, settings: OptimizerSettings, group: ParameterGroup) -> None:
        self._settings = settings
        self._group = group
        self._moments: dict[str, torch.Tensor] = {}

    @property
    def state(self) -> State:
        return {0: self._moments} if self._moments else {}

    def restore(self, state: State) -> None:
        device = self._group.weights.device
        self._moments = {name: value.to(device) for name, value in state.get(0, {}).items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        step = self._sgd if self._settings.optimizer == "sgd" else self._adam
        step(lr * self._group.lr_scale)

    def _sgd(self, lr: float) -> None:
        momentum, buffers = self._settings.momentum, [self._moments.get("momentum_buffer")]
        sgd(
            [self._group.weights], [self._group.gradient], buffers, fused=True, lr=lr,
            weight_decay=self._settings.weight_decay, momentum=momentum, dampening=0.0,
            nesterov=False,
            maximize=False,
        )  # fmt: skip
        if buffers[0] is not None:
            self._moments = {"momentum_buffer": buffers[0]}

    def _adam(self, lr: float) -> None:
        flat = self._group.weights
        if not self._moments:
            self._moments = {
                "step": torch.zeros((), device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        steps, mean, square = (self._moments[name] for name in ("step", "exp_avg", "exp_avg_sq"))
        adam(
            [flat], [self._group.gradient], [mean], [square], [], [steps], fused=True, lr=lr,
            decoupled_weight_decay=self._settings.optimizer == "adamw",
            weight_decay=self._settings.weight_decay, beta1=BETAS[0], beta2=BETAS[1], eps=EPSILON,
            amsgrad=False, maximize=False,
        )  # fmt: skip


class _Sparse:
    """torch's step on embeddings with sparse gradients."""

    def __init__(self, settings: OptimizerSettings, network: TrainableNetwork) -> None:
        self.count = len(network.tables)
        optimizer_class = torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.SparseAdam
        self._optimizer: torch.optim.Optimizer = optimizer_class(network.tables, lr=settings.lr)

    @property
    def state(self) -> State:
        state: State = self._optimizer.state_dict()["state"]
        return state

    def restore(self, state: State) -> None:
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def step(self, lr: float) -> None:
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()


def _snapshot(state: State) -> dict[str, dict[str, Any]]:
    return {
        str(index): {
            name: value.detach().clone().cpu().numpy() if torch.is_tensor(value) else value
            for name, value in moments.items()
            if value is not None
        }
        for index, moments in state.items()
    }


def _tensors(state: Mapping[str, Mapping[str, Any]]) -> State:
    return {
        int(index): {
            name: torch.tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in moments.items()
        }
        for index, moments in state.items()
    }


__all__ = ["Optimizer", "OptimizerSettings"]
