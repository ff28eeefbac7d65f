"""Copies batches to the model's device, ahead of the model."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from engine.observing.metrics import Metrics
from engine.types import Batch, DeviceTensors


class Transfer:
    """Copies a batch's tensors to a device, on the prepare thread.

    For CUDA they go through pinned memory and a stream of their own, so that the copy of one batch
    runs while the model works on another; whoever takes them (`DeviceTensors.wait`) has its stream
    wait for that copy, not its thread. One copy is under way at a time: what this thread waits for
    it is part of the time the transfer takes.

    Args:
        device: ``cuda``, ``cuda:1``, ...; others are copied to at once.
    """

    name = "transfer"

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    def apply(self, batch: Batch) -> Batch:
        """Return the collated batch with `Tensors.on_device`."""
        assert batch.tensors is not None, "a batch to place is collated"
        if self._stream is None:
            on_device = DeviceTensors(
                tensors=batch.tensors.map(lambda tensor: tensor.to(self.device))
            )
            return replace(batch, tensors=replace(batch.tensors, on_device=on_device))
        if self._copied is not None:
            self._copied.synchronize()
        pinned = batch.tensors.map(lambda tensor: tensor.pin_memory())
        with torch.cuda.stream(self._stream):
            moved = pinned.map(lambda tensor: tensor.to(self.device, non_blocking=True))
            self._copied = self._stream.record_event()
        on_device = DeviceTensors(tensors=moved, copied=self._copied)
        return replace(batch, tensors=replace(pinned, on_device=on_device))


def transfer_to(device: str) -> Transfer | None:
    """Return the transfer for a ``[train] device``: ``auto`` is cuda if available. None for the
    CPU, and for an unavailable device, which the learner reports."""
    cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    return None if device == "cpu" or (device.startswith("cuda") and not cuda) else Transfer(device)


def watch_devices(metrics: Metrics) -> None:
    """Export PyTorch's memory of every GPU as ``headrace_device_memory_bytes``: ``allocated``
    for tensors, ``reserved`` including its cache."""
    for number in range(torch.cuda.device_count()):
        held = {"allocated": torch.cuda.memory_allocated, "reserved": torch.cuda.memory_reserved}
        for name, nbytes in held.items():
            watched = functools.partial(nbytes, number)
            gauge = metrics.device_memory_bytes
            metrics.watch(gauge, watched, device=f"cuda:{number}", kind=name)


__all__ = ["Transfer", "transfer_to", "watch_devices"]
