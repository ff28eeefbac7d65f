"""Recurrent layers: GRU and LSTM."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import nn

from models.layers.layer import Block, BlockSettings, Layer, Signal, masked
from models.layers.shape import Place, Shape

Cell = Literal["gru", "lstm"]


class RecurrentSettings(BlockSettings):
    """Reads a sequence from its first vector to its last and makes a state of each place.

    Attributes:
        width: numbers of the state.
        cell: ``gru`` or ``lstm``.
        bidirectional: read it from its end as well, with other weights; the result is twice as
            wide.
    """

    kind: Literal["recurrent"] = "recurrent"
    width: PositiveInt = 64
    cell: Cell = "gru"
    bidirectional: bool = False

    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer, and the sequence of states it makes. Raises: UserError"""
        place.require(given, "sequence")
        made = Shape(form="sequence", width=self.width * (1 + self.bidirectional))
        body = Recurrent(self.cell, given.width, self.width, bidirectional=self.bidirectional)
        return Block(body, self, given, made, place), made


class Recurrent(Layer):
    """(n, length, width) -> (n, length, states).

    Padding comes after the values, so no state of a value knows of it; a gap is read as zeros. On
    the way back each row is turned around by itself, which torch's own bidirectional layers do only
    for packed sequences, and those cannot be exported.
    """

    def __init__(self, cell: str, given: int, width: int, *, bidirectional: bool) -> None:
        super().__init__()
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.forth = kind(given, width, batch_first=True)
        self.back = kind(given, width, batch_first=True) if bidirectional else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        assert mask is not None, "a sequence has a mask"
        x = masked(x, mask)
        states = self.forth(x)[0]
        if self.back is not None:
            turned = _turned(mask)
            back = _reordered(self.back(_reordered(x, turned))[0], turned)
            states = torch.cat([states, back], 2)
        return states, mask


class StateCell(nn.Module):
    """One step of a GRU or an LSTM for many keys: (n, given), (n, state_width) -> (n, width),
    (n, state_width). The state of an LSTM is its output and its cell, side by side."""

    def __init__(self, cell: Cell, given: int, width: int) -> None:
        super().__init__()
        self.cell = (nn.GRUCell if cell == "gru" else nn.LSTMCell)(given, width)
        self.state_width = state_width(cell, width)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output and the state of each row."""
        if isinstance(self.cell, nn.GRUCell):
            state = self.cell(x, state)
            return state, state
        output, cell = self.cell(x, state.chunk(2, 1))
        return output, torch.cat([output, cell], 1)


def state_width(cell: Cell, width: int) -> int:
    """Return how many numbers the state of a `StateCell` has."""
    return width if cell == "gru" else 2 * width


def _turned(mask: torch.Tensor) -> torch.Tensor:
    """Return the places of each row, turned around up to its last value, (n, length)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    ends = ((places + 1) * mask).amax(1, keepdim=True)
    return torch.where(places < ends, ends - 1 - places, places)


def _reordered(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[2]))


__all__ = ["Cell", "RecurrentSettings", "StateCell", "state_width"]
