"""Any module of torch as a network that a learner trains: all its parameters in one tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.types import HeadraceError, Tensors, UserError
from engine.types.plural import counted
from engine.user_code.calls import Calling
from models.carry import STATE, Carry
from models.learners.online.trainable import ParameterGroup, TrainableNetwork
from models.net_input import NetInput, tensors_of
from models.network import Network
from models.seeded import seeded

LEAST_BATCH = 8
"""The fewest rows of a step whose rows depend on each other, as by batch normalization."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a module does when it trains.

    Attributes:
        draws: draws torch's random numbers.
        keeps: changes its buffers, such as running means.
        differs: returns other scores than in evaluation mode.
        mixes: the scores of a row depend on the other rows.
    """

    draws: bool = False
    keeps: bool = False
    differs: bool = False
    mixes: bool = False


class FlatModule(TrainableNetwork):
    """A module whose parameters are views of one flat tensor, and their gradients of another.

    The parameters stay the objects they are, so shared ones stay shared. Those that do not learn
    (``requires_grad`` is false) stay outside; a module all of whose parameters are such stays in
    evaluation mode, so that its running means and dropout rest too.

    `raw` computes in evaluation mode, `train` in training mode, with torch's global random numbers
    seeded by `seed` and the number of the call.

    Args:
        module: on its device, with no lazy parameters left. Is changed.
        inputs: what its forward gets.
        masks: names of the masks that its forward asks for.
        outputs: 1, or the number of classes.
        behaviour: what it does when it trains.
        lr_scales: name of a parameter -> its share of the step size, 1 unless given.

    Raises: UserError if nothing in it can learn, or a parameter or buffer has an unusable type.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[NetInput],
        *,
        masks: Sequence[str] = (),
        outputs: int = 1,
        behaviour: Behaviour,
        lr_scales: Mapping[str, float] | None = None,
    ) -> None:
        require_flat(module)
        self.module = module
        self._inputs = tuple(inputs)
        self._outputs = outputs
        self._behaviour = behaviour
        given = (f"{each.name}_mask" for each in inputs if each.form in ("ids", "array"))
        self._unasked = tuple(mask for mask in given if mask not in masks)
        learn = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._device = str(next(iter(learn.values())).device)
        self._groups = self._flatten(learn, lr_scales or {})
        self._count = sum(parameter.numel() for parameter in module.parameters())
        self._nbytes = sum(parameter.nbytes for parameter in module.parameters())
        self._resting = [
            part
            for part in module.modules()
            if (own := list(part.parameters())) and not any(p.requires_grad for p in own)
        ]
        self._training: bool | None = None
        self._seed = self._calls = 0
        self._before: list[torch.Tensor] = []

    def raw(self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None = None) -> torch.Tensor:
        """Return raw scores in evaluation mode."""
        self._set_mode(training=False)
        return self._scores(rows, numeric, carry)

    def train(
        self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None = None
    ) -> torch.Tensor:
        """Return raw scores in training mode."""
        self._set_mode(training=True)
        self._calls += 1
        if self._behaviour.keeps and not self._before:
            self._before = [buffer.clone() for buffer in self.module.buffers()]
        if not self._behaviour.draws:
            return self._scores(rows, numeric, carry)
        with seeded((self._seed + self._calls * 0x9E3779B1) % 2**63, self._device):
            return self._scores(rows, numeric, carry)

    def without_gradient(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad()  # what the module keeps of a call must be fit for training

    @property
    def trains_on_scores(self) -> bool:
        """Whether it does the same in training and in evaluation."""
        behaviour = self._behaviour
        return not (behaviour.draws or behaviour.keeps or behaviour.differs)

    @property
    def least_step_rows(self) -> int:
        """The fewest rows of a step: several if they depend on each other."""
        return LEAST_BATCH if self._behaviour.mixes else 1

    @property
    def count(self) -> int:
        """The number of weights, with those that do not learn."""
        return self._count

    @property
    def nbytes(self) -> int:
        """The bytes of all weights, with those that do not learn."""
        return self._nbytes

    def groups(self) -> list[ParameterGroup]:
        return self._groups

    def buffers(self) -> list[torch.Tensor]:
        return list(self.module.buffers())

    @torch.no_grad()
    def reset_outputs(self, slots: Sequence[int]) -> None:
        from models.network import Network  # layers, which a module of the user's does without

        if isinstance(self.module, Network):
            for parameter in self.module.scores.parameters():
                parameter.detach()[list(slots)] = 0.0

    def seed(self, seed: int) -> None:
        self._seed, self._calls = seed, 0

    def undo(self) -> None:
        for buffer, before in zip(self.module.buffers(), self._before, strict=False):
            buffer.copy_(before)

    def settle(self) -> None:
        self._before = []

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return name -> parameter or buffer; of several names of one, the first."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def weights(self) -> dict[str, np.ndarray]:
        """Return name -> parameters and buffers, copied."""
        tensors = self.tensors()
        return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, np.ndarray]) -> None:
        tensors = self.tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        saved = {name: array.shape for name, array in weights.items()}
        for name in [*saved, *shapes]:
            if saved.get(name) != shapes.get(name):
                raise UserError(
                    f"The saved model has '{name}' of shape {saved.get(name)}, and this pipeline's "
                    f"module of shape {shapes.get(name)}: change it back, or start over with "
                    "--fresh."
                )
        for name, tensor in tensors.items():
            tensor.copy_(torch.tensor(weights[name]))

    def _scores(self, rows: Tensors, numeric: torch.Tensor, carry: Carry | None) -> torch.Tensor:
        tensors = tensors_of(rows, self._inputs, numeric)
        for mask in self._unasked:
            del tensors[mask]
        with Calling("model", self.module, key="module"):
            raw: torch.Tensor = (
                self.module(**tensors) if carry is None else self._passed(tensors, carry)
            )
        if self._outputs == 1 and raw.ndim == 2:
            raw = raw.squeeze(1)
        expected = (len(rows),) if self._outputs == 1 else (len(rows), self._outputs)
        if raw.shape != expected:
            raise HeadraceError(
                f"[model] module returned scores of shape {tuple(raw.shape)} for "
                f"{counted(len(rows), 'row')}, expected {expected}."
            )
        return raw

    def _passed(self, tensors: Mapping[str, torch.Tensor], carry: Carry) -> torch.Tensor:
        """Return raw scores of rows that follow one another."""
        if isinstance(self.module, Network):
            return self.module.pass_rows(carry, **tensors)
        names = (*tensors, STATE)

        def step(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raw, state = self.module(**dict(zip(names, given, strict=True)))
            return raw.squeeze(1) if self._outputs == 1 and raw.ndim == 2 else raw, state

        return carry.run(step, *tensors.values())

    def _set_mode(self, *, training: bool) -> None:
        # Where both modes are alike, the module stays in one: a switch visits every part of it.
        training = training or self.trains_on_scores
        if self._training == training:
            return
        self._training = training
        self.module.train(training)
        for part in self._resting:
            part.eval()

    @torch.no_grad()
    def _flatten(
        self, learn: Mapping[str, nn.Parameter], lr_scales: Mapping[str, float]
    ) -> list[ParameterGroup]:
        """Move parameters into one tensor, by their step sizes; return the parts."""
        scales = sorted({lr_scales.get(name, 1.0) for name in learn}, reverse=True)
        by_scale = [
            [p for name, p in learn.items() if lr_scales.get(name, 1.0) == scale]
            for scale in scales
        ]
        ordered = [parameter for group in by_scale for parameter in group]
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in ordered])
        self.flat.requires_grad_()
        self.gradient = torch.zeros_like(self.flat, requires_grad=False)
        self.flat.grad = self.gradient
        flat, start = self.flat.detach(), 0
        for parameter in ordered:
            part = slice(start, start + parameter.numel())
            parameter.data = flat[part].view(parameter.shape)
            parameter.grad = self.gradient[part].view(parameter.shape)
            start = part.stop
        if len(scales) == 1:
            return [ParameterGroup(weights=self.flat, gradient=self.gradient, lr_scale=scales[0])]
        sizes = [sum(p.numel() for p in group) for group in by_scale]
        return [
            ParameterGroup(weights=weights, gradient=gradient, lr_scale=scale)
            for weights, gradient, scale in zip(
                torch.split(flat, sizes), torch.split(self.gradient, sizes), scales, strict=True
            )
        ]


def require_flat(module: nn.Module) -> None:
    """Raises: UserError if the module has nothing that can learn, or parameters or buffers that
    cannot be kept."""
    parameters = dict(module.named_parameters())
    if not parameters:
        raise UserError("[model] module has no parameters, so there is nothing to learn.")
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UserError(
                f"[model] module has a lazy parameter '{name}' that its forward never uses, so "
                "its size is unknown: take it out, or give its size."
            )
        if parameter.is_meta:
            raise UserError(
                f"[model] module has a parameter '{name}' without values (device 'meta'): make the "
                "module on the CPU."
            )
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"[model] module has a parameter '{name}' of type {_short(parameter.dtype)}, "
                "expected float32: call .float() in its __init__; [train] precision computes in "
                "bfloat16."
            )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(
            f"[model] module has {counted(len(parameters), 'parameter')}, all of them frozen, so "
            "there is nothing to learn: leave some out of [model] freeze."
        )
    for name, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise UserError(
                f"[model] module has a part '{name}' with a state of its own (get_extra_state), "
                "which a checkpoint cannot hold: keep it in buffers."
            )
    for name, tensor in {**parameters, **dict(module.named_buffers())}.items():
        try:
            tensor.detach().new_zeros(1).cpu().numpy()
        except TypeError:
            raise UserError(
                f"[model] module has '{name}' of type {_short(tensor.dtype)}, which a checkpoint "
                "cannot hold: use float32."
            ) from None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


__all__ = ["LEAST_BATCH", "Behaviour", "FlatModule", "require_flat"]
