"""A pool of array buffers; a buffer is reused once no view of it is left.

The first touch of a page of new memory costs more than what most loops do to it, and batches need
as much of it each time as the time before.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MIN_POOLED_BYTES = 1 << 16
"""The least size in bytes of a pooled buffer; the allocator reuses smaller ones itself."""


def _holders(blocks: list[NDArray[np.uint8]], i: int) -> int:
    """Return the number of references to a block, those of the list and of this call included."""
    return sys.getrefcount(blocks[i])


FREE_REFERENCES = _holders([np.empty(0, np.uint8)], 0)
"""The references to a free block. Measured and not written down: if an interpreter counted
otherwise, no block would ever be free."""


class BufferPool:
    """A pool that hands out arrays. The memory of an array is reused once the array and everything
    that shares its memory (views, tensors, series) are gone, so no holder ever sees it change.

    For one thread.

    Args:
        spare: free blocks that are kept.
    """

    def __init__(self, spare: int = 1) -> None:
        self._spare = spare
        self._blocks: list[NDArray[np.uint8]] = []
        """All blocks that may still be in use, and the spare ones."""

    def empty(self, shape: tuple[int, ...], dtype_like: DTypeLike) -> NDArray[Any]:
        """Return an uninitialized array."""
        dtype = np.dtype(dtype_like)
        size = math.prod(shape) * dtype.itemsize
        if size < MIN_POOLED_BYTES:
            return np.empty(shape, dtype)
        blocks = self._blocks
        free = [i for i in range(len(blocks)) if _holders(blocks, i) == FREE_REFERENCES]
        at = next((i for i in free if size <= len(blocks[i]) <= 2 * size), None)
        block = np.empty(size, np.uint8) if at is None else blocks[at]
        others = [i for i in free if i != at]
        gone = {*others[: max(len(others) - self._spare, 0)], at}  # those of the latest sizes stay
        self._blocks = [*(blocks[i] for i in range(len(blocks)) if i not in gone), block]
        return block[:size].view(dtype).reshape(shape)


__all__ = ["BufferPool"]
