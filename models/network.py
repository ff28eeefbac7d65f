"""The network that ``[model.inputs]`` and ``[model.head]`` describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from engine.types import UserError, nearest
from models.carry import STATE, Carry
from models.layers.convolution import ConvolutionSettings
from models.layers.defaults import HEAD, default_layers
from models.layers.experts import Experts
from models.layers.layer import Layer, LayerSettings, Signal
from models.layers.recurrent import Cell, StateCell
from models.layers.shape import WORDS, Place, Shape
from models.net_input import NetInput
from models.seeded import seeded


class Network(nn.Module):
    """An encoder per input, and a head over what they make.

    Called with one tensor per input by its name, and ``NAME_mask`` for ids and arrays; see
    `models.net_input.NetInput`.

    With a memory it is also called with ``state``, what each row's key carries, and returns the
    scores and the new states. `pass_rows` does that for rows that follow one another.

    Args:
        encoders: input -> layers that make one vector per row of it.
        head: layers over all these vectors.
        width: of what the head makes.
        outputs: 1, or the number of classes.
        memory: carries a state from row to row of a key; the head gets what it makes beside the
            vectors.
    """

    def __init__(
        self,
        encoders: Mapping[str, Stack],
        head: Stack,
        width: int,
        outputs: int,
        memory: StateCell | None = None,
    ) -> None:
        super().__init__()
        self._inputs = tuple(encoders)
        for name, encoder in encoders.items():
            self.add_module(f"input_{name}", encoder)
        self.memory = memory
        self.head = head
        self.scores = nn.Linear(width, outputs)

    def forward(self, **tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return raw scores, shape (n,) or (n, outputs), without a link function; with a memory
        also the state after each row."""
        vectors = self._vectors(tensors)
        if self.memory is None:
            return self._scored(vectors)
        output, state = self.memory(vectors, tensors[STATE])
        return self._scored(torch.cat([vectors, output], 1)), state

    def pass_rows(self, carry: Carry, **tensors: torch.Tensor) -> torch.Tensor:
        """Return raw scores of rows that follow one another; all but the memory looks at all of
        them at once."""
        assert self.memory is not None, "only a memory carries a state"
        vectors = self._vectors(tensors)
        output = carry.run(self.memory, vectors)
        return self._scored(torch.cat([vectors, output], 1))

    def _vectors(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([self._encoded(name, tensors) for name in self._inputs], 1)

    def _scored(self, vectors: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.head(vectors, None)
        scores: torch.Tensor = self.scores(hidden)
        return scores.squeeze(1) if scores.shape[1] == 1 else scores

    def _encoded(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x, mask = tensors[name], tensors.get(f"{name}_mask")
        if mask is not None and not torch.compiler.is_exporting() and not mask.shape[1]:
            x, mask = _one_place(x), _one_place(mask)
        vector: torch.Tensor = self.get_submodule(f"input_{name}")(x, mask)[0]
        return vector


class Stack(nn.ModuleList):
    """Layers, each after the other."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> Signal:
        """Return the result of the last layer."""
        for layer in self:
            x, mask = layer(x, mask)
        return x, mask


def build_network(
    inputs: Sequence[NetInput],
    layers: Mapping[str, Sequence[LayerSettings]],
    head: Sequence[LayerSettings] | None,
    outputs: int,
    *,
    memory: tuple[Cell, int] | None = None,
    seed: int = 0,
) -> Network:
    """Return an untrained network.

    Args:
        layers: input -> its layers. An input that is not named gets those of
            `models.layers.defaults.default_layers`.
        head: layers over the vectors of all inputs; None for 128 and 64 dense units. A linear
            layer to the outputs follows.
        outputs: 1, or the number of classes.
        memory: the cell and the width of a state that each key carries; see `Network`.
        seed: of the first weights. torch's own random state is neither read nor changed.

    Raises: UserError naming the layer that does not fit what it is given.
    """
    _check_names(inputs, layers, has_memory=memory is not None)
    with seeded(seed):
        encoders, width = {}, 0
        for net_input in inputs:
            table = f"[model.inputs.{net_input.name}]"
            given = layers.get(net_input.name)
            asked = default_layers(net_input) if given is None else given
            encoders[net_input.name], made = _stack(asked, Shape.of(net_input), table)
            width += made.width
        cell = None if memory is None else StateCell(memory[0], width, memory[1])
        width += 0 if memory is None else memory[1]
        all_vectors = Shape(form="vector", width=width)
        stack, made = _stack(HEAD if head is None else head, all_vectors, "[model.head]")
        return Network(encoders, stack, made.width, outputs, cell)


def expert_loads(network: nn.Module) -> Mapping[str, Sequence[float]]:
    """Return layer of experts -> each expert's share of the newest vectors it was trained with."""
    return {
        name.removesuffix(".body"): module.load.tolist()
        for name, module in network.named_modules()
        if isinstance(module, Experts)
    }


def _stack(asked: Sequence[LayerSettings], given: Shape, table: str) -> tuple[Stack, Shape]:
    """Return layers that make one vector per row, and its shape."""
    made, layers = given, []
    for settings, place in zip(asked, _places(asked, table), strict=True):
        layer, made = settings.build(made, place)
        layers.append(layer)
    if made.form != "vector":
        advice = "a pooling" if made.form in ("sequence", "image") else "an embedding"
        raise UserError(
            f"{table} layers: expected one vector per row after the last layer, got "
            f"{WORDS[made.form]}: put {advice} there."
        )
    return Stack(layers), made


def _places(asked: Sequence[LayerSettings], table: str) -> Iterator[Place]:
    last = max(
        (i for i, layer in enumerate(asked) if isinstance(layer, ConvolutionSettings)), default=-1
    )
    for i, layer in enumerate(asked):
        yield Place(table=table, number=i + 1, kind=layer.kind, before_convolution=i < last)


def _check_names(
    inputs: Sequence[NetInput], layers: Mapping[str, object], *, has_memory: bool
) -> None:
    names = [net_input.name for net_input in inputs]
    if not names:
        raise UserError("[model] needs inputs: name columns in a table [model.inputs.NAME].")
    for name in names:
        if not name.isidentifier():
            raise UserError(
                f"[model.inputs]: expected a name of letters, digits and _, got '{name}'."
            )
    if has_memory and STATE in names:
        raise UserError(
            f"[model.inputs.{STATE}]: '{STATE}' is what [model.state] carries: name the input "
            "otherwise."
        )
    for name in layers:
        if name not in names:
            raise UserError(f"[model.inputs] has no input '{name}'.{nearest(name, names)}")


def _one_place(x: torch.Tensor) -> torch.Tensor:
    """Return a sequence without places with one that is padding."""
    return x.new_zeros((x.shape[0], 1, *x.shape[2:]))


__all__ = ["Layer", "Network", "build_network", "expert_loads"]
