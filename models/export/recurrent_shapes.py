"""Lets torch trace recurrent layers over any number of steps.

torch finds the shapes of a GRU and an LSTM by taking one step after the other, so that the length
of the traced batch becomes a constant. Here their shapes are computed at once: the layer itself
stays one node of the trace, and of the ONNX file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

KEY = torch._C.DispatchKey.CompositeImplicitAutograd


@contextmanager
def one_node_per_layer() -> Iterator[None]:
    """Trace recurrent layers as a whole."""
    with ExitStack() as stack:
        for operator, shapes in (
            (torch.ops.aten.gru.input, _gru),
            (torch.ops.aten.lstm.input, _lstm),
        ):
            stack.enter_context(_kernel(operator, shapes))
        yield


@contextmanager
def _kernel(operator: Any, function: Any) -> Iterator[None]:
    kernels = operator.py_kernels
    before = kernels.get(KEY)
    kernels[KEY] = function
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        kernels.pop(KEY)
        if before is not None:
            kernels[KEY] = before
        operator._dispatch_cache.clear()


def _gru(
    input: torch.Tensor,
    hx: torch.Tensor,
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _states(input, hx, bidirectional), torch.empty_like(hx)


def _lstm(
    input: torch.Tensor,
    hx: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    states, cells = hx
    return _states(input, states, bidirectional), torch.empty_like(states), torch.empty_like(cells)


def _states(x: torch.Tensor, hx: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    return x.new_empty((*x.shape[:2], hx.shape[2] * (1 + bidirectional)))


__all__ = ["one_node_per_layer"]
