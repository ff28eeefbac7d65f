"""Rows to learn from, and their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.types import Batch, Tensors

if TYPE_CHECKING:
    import torch


def labelled(batch: Batch) -> tuple[Tensors, torch.Tensor]:
    """Return the tensors of a batch to learn from, and the target of its rows."""
    assert batch.tensors is not None, "a batch to learn from is collated"
    return batch.tensors, target_of(batch.tensors)


def target_of(rows: Tensors) -> torch.Tensor:
    """Return the target of rows that have one."""
    assert rows.target is not None, "rows to learn from have a target"
    return rows.target


__all__ = ["labelled", "target_of"]
