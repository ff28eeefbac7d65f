"""The first weights of a module from a file; which of its parameters learn, and how fast; adapters
of low rank."""

from __future__ import annotations

import fnmatch
import functools
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from engine.types import UserError, first_line, nearest
from engine.types.plural import counted
from models.seeded import seeded

log = logging.getLogger("headrace.learner")
NESTED = ("state_dict", "model", "module")
"""Keys under which training programs keep the weights of a model."""
SHOWN = 5
"""Names that a sentence shows."""


def load_weights(module: nn.Module, path: str) -> None:
    """Load the weights of a file into a module, by their names; say what is missing or left over.

    Args:
        path: ``.safetensors``, or a state dict that torch has saved; nothing in it is run.

    Raises: UserError for a file that cannot be read, fits no name, or holds another shape.
    """
    saved = _read(path)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    own |= module.state_dict(keep_vars=True)  # shared ones have several names
    both = [name for name in saved if name in own]
    if not both:
        raise UserError(
            f"[model] weights '{path}' holds none of the module's weights: it has "
            f"{_listed(saved)}, and the module {_listed(own)}."
        )
    for name in both:
        if saved[name].shape != own[name].shape:
            raise UserError(
                f"[model] weights '{path}' holds '{name}' of shape {tuple(saved[name].shape)}, and "
                f"the module's has {tuple(own[name].shape)}: change [model] arguments, or take it "
                "out of the file."
            )
    with torch.no_grad():
        for name in both:
            own[name].copy_(saved[name])
    tell_once(f"[model] weights: {counted(len(both), 'tensor')} of {path} loaded", logging.INFO)
    loaded = {id(own[name]) for name in both}
    if missing := _listed([n for n, tensor in own.items() if id(tensor) not in loaded]):
        tell_once(f"[model] weights '{path}' lacks {missing}: these start at random")
    if left := _listed([name for name in saved if name not in own]):
        tell_once(f"[model] weights '{path}' also holds {left}, which the module has not")


def freeze(module: nn.Module, patterns: Iterable[str]) -> None:
    """Let the parameters that these patterns match learn nothing.

    Raises: UserError for a pattern that matches none.
    """
    parameters = dict(module.named_parameters())
    for pattern in patterns:
        for name in _matches(pattern, parameters, "[model] freeze"):
            parameters[name].requires_grad_(False)


def add_adapters(module: nn.Module, ranks: Mapping[str, int], *, seed: int) -> None:
    """Let the weights that these patterns match rest, and learn a change of low rank beside each.

    Args:
        ranks: name or glob of parameters -> rank of their change.
        seed: of its first numbers.

    Raises: UserError for a pattern that matches no matrix, or one that a recurrent layer holds.
    """
    matrices = {name: p for name, p in module.named_parameters() if p.ndim > 1}
    chosen: dict[str, int] = {}
    for pattern, rank in ranks.items():
        for name in _matches(pattern, matrices, "[model] lora"):
            chosen.setdefault(name, rank)
    with seeded(seed):
        for name, rank in chosen.items():
            path, _, attribute = name.rpartition(".")
            part = module.get_submodule(path)
            if isinstance(part, nn.RNNBase):
                raise UserError(
                    f"[model] lora names '{name}' of a recurrent layer, which takes no adapters: "
                    "leave it out."
                )
            matrices[name].requires_grad_(False)
            adapter = LowRank(matrices[name], rank)
            parametrize.register_parametrization(part, attribute, adapter)


class LowRank(nn.Module):
    """Adds a learned matrix of low rank, 0 at first, to a weight that rests (Hu et al., "LoRA:
    low-rank adaptation of large language models", 2021).

    Args:
        weight: shape (outputs, ...).
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        columns = weight[0].numel()
        bound = 1 / math.sqrt(columns)
        self.down = nn.Parameter(torch.empty(rank, columns).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        self.to(weight.device)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def lr_scales(module: nn.Module, scales: Mapping[str, float]) -> dict[str, float]:
    """Return name of a parameter -> its share of the step size, by the first pattern that matches
    it; those that none matches are left out.

    Raises: UserError for a pattern that matches none.
    """
    parameters = dict(module.named_parameters())
    shares: dict[str, float] = {}
    for pattern, share in scales.items():
        for name in _matches(pattern, parameters, "[train] lr_scale"):
            shares.setdefault(name, share)
    return shares


@functools.cache
def tell_once(sentence: str, level: int = logging.WARNING) -> None:
    """Log a sentence once per process: challengers are made as the first learner was."""
    log.log(level, "%s", sentence)


def _matches(pattern: str, names: Iterable[str], where: str) -> list[str]:
    matches = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matches:
        raise UserError(
            f"{where} has the pattern '{pattern}', and no parameter of the module matches it."
            f"{nearest(pattern, names)}"
        )
    return matches


def _read(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise UserError(f"[model] weights '{path}' is no file.")
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - each library has its own
        raise UserError(
            f"[model] weights '{path}' cannot be read: {first_line(error)}: expected .safetensors, "
            "or a state dict by torch.save(module.state_dict(), path)."
        ) from None
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        raise UserError(
            f"[model] weights '{path}' holds a {type(loaded).__name__} and no state dict: expected "
            "name -> tensor, as torch.save(module.state_dict(), path) writes."
        )
    return dict(loaded)


def _listed(names: Iterable[str]) -> str:
    """Return the names in words: all of a few, or how many more there are."""
    every = list(names)
    shown = ", ".join(f"'{name}'" for name in every[:SHOWN])
    more = len(every) - SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


__all__ = ["LowRank", "add_adapters", "freeze", "load_weights", "lr_scales", "tell_once"]
