"""Attention: transformer encoder blocks over a sequence, and its positions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.nn import functional as F

from models.layers.layer import MASKED, Layer, LayerSettings, Signal
from models.layers.shape import Place, Shape

FEEDFORWARD = 4
"""The width inside a block, in widths of its vectors."""


class AttentionSettings(LayerSettings):
    """Transformer blocks: each vector of a sequence reads the others.

    Attributes:
        blocks: number of blocks, each with attention and a dense layer, both normalized before
            and added to what they read.
        heads: number of attentions of a block that share its width.
        width: numbers of each vector; unless given, as many as the vectors come with. Otherwise a
            linear map comes first.
        positions: what tells a block where a vector stands: ``sinusoidal``, ``learned`` (the first
            `max_length` places; later ones count as the last of them) or ``none``.
        max_length [places]: learned positions.
        causal: a vector reads only those before it.
        dropout [share]: share of the numbers silenced in a training step.
    """

    kind: Literal["attention"] = "attention"
    blocks: PositiveInt = 2
    heads: PositiveInt = 4
    width: PositiveInt | None = None
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    max_length: PositiveInt = 512
    causal: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(self, given: Shape, place: Place) -> tuple[Layer, Shape]:
        """Return the layer, and the sequence it makes. Raises: UserError"""
        place.require(given, "sequence")
        width = self.width or given.width
        if width % self.heads:
            raise place.error(
                f"expected heads that divide the width of {width}, got heads = {self.heads}: set "
                f"width = {math.ceil(width / self.heads) * self.heads} or other heads"
            )
        return Attention(self, given.width, width), Shape(form="sequence", width=width)


class Attention(Layer):
    """(n, length, given) -> (n, length, width)."""

    def __init__(self, settings: AttentionSettings, given: int, width: int) -> None:
        super().__init__()
        self._causal = settings.causal
        self.entry = nn.Identity() if given == width else nn.Linear(given, width)
        self.positions: nn.Module = nn.Identity()
        if settings.positions == "sinusoidal":
            self.positions = SinusoidalPositions(width)
        elif settings.positions == "learned":
            self.positions = LearnedPositions(settings.max_length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                settings.heads,
                FEEDFORWARD * width,
                settings.dropout,
                _gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.blocks)
        )
        self.normalization = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Signal:
        assert mask is not None, "a sequence has a mask"
        x = self.positions(self.entry(x))
        if not torch.compiler.is_exporting() and not x.shape[0]:
            return x, mask  # torch's attention fails without rows
        # Numbers, not bools: those would be -inf, and nan in a row without values.
        hidden = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, MASKED)
        later = _later(x) if self._causal else None
        for block in self.blocks:
            x = block(x, src_mask=later, src_key_padding_mask=hidden)
        return self.normalization(x), mask


class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of the place, of wavelengths from 6 to 60,000 places.

    Source: Vaswani et al., "Attention is all you need", 2017.
    """

    rates: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = (width + 1) // 2
        rates = torch.exp(torch.arange(half) * (-math.log(10_000.0) / half))
        self._width = width
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, length, width) with its places."""
        angles = torch.arange(x.shape[1], device=x.device).unsqueeze(1) * self.rates
        return x + torch.cat([angles.sin(), angles.cos()], 1)[:, : self._width]


class LearnedPositions(nn.Module):
    """Adds a learned vector of the place."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, length, width) with its places."""
        places = torch.arange(x.shape[1], device=x.device)
        vectors: torch.Tensor = self.table(places.clamp(max=self.table.num_embeddings - 1))
        return x + vectors


def _later(x: torch.Tensor) -> torch.Tensor:
    """Return the summand of attention scores that hides later places, (length, length)."""
    places = torch.arange(x.shape[1], device=x.device)
    return (places > places.unsqueeze(1)).to(x.dtype) * MASKED


def _gelu(x: torch.Tensor) -> torch.Tensor:
    # Not F.gelu itself: the block would take torch's fused path, which rounds otherwise than
    # training does and is not ONNX.
    return F.gelu(x)


__all__ = ["AttentionSettings"]
