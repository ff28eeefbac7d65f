"""The layers of an input whose ``layers`` are left out, by the form of its columns."""

from __future__ import annotations

from collections.abc import Sequence

from models.layers.convolution import ConvolutionSettings
from models.layers.dense import DenseSettings
from models.layers.embedding import EmbeddingSettings
from models.layers.layer import LayerSettings
from models.layers.pooling import PoolingSettings
from models.layers.recurrent import RecurrentSettings
from models.net_input import NetInput

HEAD: Sequence[LayerSettings] = (DenseSettings(width=128), DenseSettings(width=64))
"""The layers of a network whose ``[model.head]`` is left out."""
SMALLEST_SIDE = 8
"""Pixels of an image's shorter side below which it is not made smaller."""
CHANNELS = (32, 64, 128)


def default_layers(net_input: NetInput) -> Sequence[LayerSettings]:
    """Return the layers of an input that says nothing of them.

    Numbers need none. Categories get vectors, ids the mean of their vectors, arrays the last
    state of a GRU, images convolutions up to a map of less than 8 pixels.
    """
    if net_input.form == "numbers":
        return ()
    if net_input.form == "codes":
        return (EmbeddingSettings(),)
    if net_input.form == "ids":
        return (EmbeddingSettings(), PoolingSettings(how="mean"))
    if net_input.form == "array":
        return (RecurrentSettings(), PoolingSettings(how="last"))
    return _convolutions(min(net_input.shape[1:]))


def _convolutions(side: int) -> Sequence[LayerSettings]:
    layers: list[LayerSettings] = [ConvolutionSettings(width=CHANNELS[0])]
    step = 1
    while side >= SMALLEST_SIDE:
        side //= 2
        width = CHANNELS[min(step, len(CHANNELS) - 1)]
        layers += [PoolingSettings(how="max"), ConvolutionSettings(width=width)]
        step += 1
    return (*layers, PoolingSettings(how="max"))


__all__ = ["HEAD", "default_layers"]
