"""The model's input: dense, ragged, padded and sparse features of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    TypeAlias,
)  # fmt: skip

import numpy as np
from numpy.typing import NDArray

from engine.types.scale import Scales, even_parts, scales_of_rows

if TYPE_CHECKING:
    import torch

TensorFunction: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor that shares its memory. Imports torch, which takes half a GiB
    and two seconds, only in engines that learn."""
    import torch

    return torch.from_numpy(array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``, as in
    EmbeddingBag (``include_last_offset=True``).

    Attributes:
        values: shape (total,); int64, or float32.
        offsets: shape (n + 1,), int64, from 0, not decreasing.
    """

    values: torch.Tensor
    offsets: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Return some of the rows; see `Tensors.take`."""
        at, offsets = _gathered(self.offsets, rows)
        return Ragged(values=self.values[at], offsets=offsets)

    def slice(self, start: int, stop: int) -> Ragged:
        """Return the rows start..stop-1, sharing the values."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - first
        return Ragged(values=self.values[first:last], offsets=offsets)

    def map(self, each: TensorFunction) -> Ragged:
        """Return the same with other tensors."""
        return Ragged(values=each(self.values), offsets=each(self.offsets))


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """Rows of different lengths, padded with 0 to one of a few lengths.

    Attributes:
        values: shape (n, length); int64, or float32. Of arrays (n, length, width), float32.
        mask: shape (n, length), bool: true where there is a value.
    """

    values: torch.Tensor
    mask: torch.Tensor

    def take(self, rows: NDArray[np.int64]) -> Padded:
        """Return some of the rows, at the same length; see `Tensors.take`."""
        at = tensor(rows)
        return Padded(values=self.values[at], mask=self.mask[at])

    def slice(self, start: int, stop: int) -> Padded:
        """Return the rows start..stop-1, at the same length, sharing memory."""
        return Padded(values=self.values[start:stop], mask=self.mask[start:stop])

    def map(self, each: TensorFunction) -> Padded:
        """Return the same with other tensors."""
        return Padded(values=each(self.values), mask=each(self.mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Rows of mostly zeros: the nonzero numbers of row i are ``weights[a:b]`` in the columns
    ``indices[a:b]``, ascending, with ``a, b = offsets[i], offsets[i + 1]``. As in EmbeddingBag
    (``include_last_offset=True``, weights ``per_sample_weights``).

    Attributes:
        indices: shape (total,), int64.
        offsets: shape (n + 1,), int64.
        weights: shape (total,), float32.
        width: number of columns.
    """

    indices: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> Sparse:
        """Return some of the rows; see `Tensors.take`."""
        at, offsets = _gathered(self.offsets, rows)
        indices, weights = self.indices[at], self.weights[at]
        return Sparse(indices=indices, offsets=offsets, weights=weights, width=self.width)

    def slice(self, start: int, stop: int) -> Sparse:
        """Return the rows start..stop-1, sharing the numbers."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return Sparse(
            indices=self.indices[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            weights=self.weights[first:last],
            width=self.width,
        )

    def map(self, each: TensorFunction) -> Sparse:
        """Return the same with other tensors."""
        parts = (each(part) for part in (self.indices, self.offsets, self.weights))
        indices, offsets, weights = parts
        return Sparse(indices=indices, offsets=offsets, weights=weights, width=self.width)

    def csr(self) -> torch.Tensor:
        """Return a sparse tensor of torch, shape (n, width), float32, sharing memory."""
        import torch

        size = (len(self), self.width)
        return torch.sparse_csr_tensor(
            self.offsets, self.indices, self.weights, size, check_invariants=False
        )


def _gathered(offsets: torch.Tensor, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of these rows' values, row after row, and their offsets."""
    bounds = offsets.cpu().numpy()
    starts, lengths = bounds[:-1][rows], np.diff(bounds)[rows]
    new_offsets = np.concatenate(([0], np.cumsum(lengths)))
    at = np.arange(new_offsets[-1]) + np.repeat(starts - new_offsets[:-1], lengths)
    return tensor(at), tensor(new_offsets).to(offsets.device)


def bucket(longest: int, most: int, buckets: tuple[int, ...] = ()) -> int:
    """Return the padded length for rows of up to `longest` values: the next bucket or power of
    two, never above `most`."""
    fits = (size for size in buckets if size >= longest)
    return min(next(fits, most) if buckets else 1 << max(0, longest - 1).bit_length(), most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """A batch as the model reads it.

    Attributes:
        numeric: shape (n, d), float32, C-contiguous; column i is feature i of `Features.numeric`.
        categories: shape (n, c), int64; codes of `Features.categories`, 0 = unknown.
        target: shape (n,); float32 (regression; of several targets (n, targets), NaN where a row
            has none), int64 class numbers (binary, multiclass), or None when serving. NaN or -1 of
            a row without a label, which is only scored. Of rows that augmentation has mixed,
            float32 shares: of class 1, shape (n,), or of each of k classes, shape (n, k).
        images: column -> shape (n, channels, height, width), uint8 (0 ... 255) or float32; in
            memory ``channels_last``. They may lie in the frame's own memory: make new ones, never
            write into these.
        ragged, padded, sparse, arrays: column -> its rows, of `Features` of the same names.
        keys: the hash of each row's key, int64, shape (n,), where `Features.state` asks for it.
        times: its event time in ticks, int64, shape (n,), where that asks for it, too.
        learned: which rows are learned, bool, shape (n,), in host memory: the others are only
            scored, in their turn. None: all.
        scales: what stages have scaled `numeric` with; other rows may have other scales.
        on_device: the same on the model's device, where a loader copies them there; never of other
            rows: what is made of these has none.
    """

    numeric: torch.Tensor
    categories: torch.Tensor
    target: torch.Tensor | None = None
    images: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ragged: Mapping[str, Ragged] = field(default_factory=dict)
    padded: Mapping[str, Padded] = field(default_factory=dict)
    sparse: Mapping[str, Sparse] = field(default_factory=dict)
    arrays: Mapping[str, Padded] = field(default_factory=dict)
    keys: torch.Tensor | None = None
    times: torch.Tensor | None = None
    learned: torch.Tensor | None = None
    scales: Scales = ()
    on_device: DeviceTensors | None = None

    def __len__(self) -> int:
        return int(self.numeric.shape[0])  # a tenth of what a tensor's len costs

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors in this process's memory."""
        sizes: list[int] = []

        def size(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        self.map(size)
        return sum(sizes)

    @property
    def to_learn(self) -> NDArray[np.bool_]:
        """Which rows are learned, shape (n,)."""
        if self.learned is None:
            return np.ones(len(self), np.bool_)
        learned: NDArray[np.bool_] = self.learned.numpy()
        return learned

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have a label, of several targets at least one, shape (n,)."""
        assert self.target is not None, "rows to learn from have a target"
        target: NDArray[Any] = self.target.numpy()
        there: Any = ~np.isnan(target) if target.dtype.kind == "f" else target >= 0
        labelled: NDArray[np.bool_] = there if there.ndim == 1 else there.any(axis=1)
        return labelled

    def map(self, each: TensorFunction) -> Tensors:
        """Return the same rows with `each` applied to every tensor, always in the same order."""
        return Tensors(
            numeric=each(self.numeric),
            categories=each(self.categories),
            target=None if self.target is None else each(self.target),
            images={name: each(image) for name, image in self.images.items()},
            ragged={name: rows.map(each) for name, rows in self.ragged.items()},
            padded={name: rows.map(each) for name, rows in self.padded.items()},
            sparse={name: rows.map(each) for name, rows in self.sparse.items()},
            arrays={name: rows.map(each) for name, rows in self.arrays.items()},
            keys=None if self.keys is None else each(self.keys),
            times=None if self.times is None else each(self.times),
            learned=None if self.learned is None else each(self.learned),
            scales=self.scales,
        )

    def slice(self, start: int, stop: int) -> Tensors:
        """Return the rows start..stop-1, sharing memory."""
        if start == 0 and stop == len(self):
            return self
        rows = slice(start, stop)
        return Tensors(
            numeric=self.numeric[rows],
            categories=self.categories[rows],
            target=None if self.target is None else self.target[rows],
            images={name: image[rows] for name, image in self.images.items()},
            ragged={name: each.slice(start, stop) for name, each in self.ragged.items()},
            padded={name: each.slice(start, stop) for name, each in self.padded.items()},
            sparse={name: each.slice(start, stop) for name, each in self.sparse.items()},
            arrays={name: each.slice(start, stop) for name, each in self.arrays.items()},
            keys=None if self.keys is None else self.keys[rows],
            times=None if self.times is None else self.times[rows],
            learned=None if self.learned is None else self.learned[rows],
            scales=scales_of_rows(self.scales, rows),
        )

    def even_parts(self) -> Iterator[Tensors]:
        """Yield the rows in parts of one scale each, in order."""
        for rows, scales in even_parts(self.scales, len(self)):
            yield dataclasses.replace(self.slice(rows.start, rows.stop), scales=scales)

    def take(self, rows: NDArray[np.int64]) -> Tensors:
        """Return some of the rows, in that order, copied; a row may occur several times."""
        at = tensor(rows)
        return Tensors(
            numeric=self.numeric[at],
            categories=self.categories[at],
            target=None if self.target is None else self.target[at],
            images={name: image[at] for name, image in self.images.items()},
            ragged={name: each.take(rows) for name, each in self.ragged.items()},
            padded={name: each.take(rows) for name, each in self.padded.items()},
            sparse={name: each.take(rows) for name, each in self.sparse.items()},
            arrays={name: each.take(rows) for name, each in self.arrays.items()},
            keys=None if self.keys is None else self.keys[at],
            times=None if self.times is None else self.times[at],
            learned=None if self.learned is None else self.learned[at],
            scales=scales_of_rows(self.scales, rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTensors:
    """Tensors being copied to a device.

    Attributes:
        tensors: there.
        copied: happens when they are; None where they are already.
    """

    tensors: Tensors
    copied: torch.cuda.Event | None = None

    def wait(self) -> Tensors:
        """Return the tensors; the current stream waits for the copy, this thread does not."""
        if self.copied is not None:
            import torch

            stream = torch.cuda.current_stream(self.tensors.numeric.device)
            stream.wait_event(self.copied)

            def used(tensor: torch.Tensor) -> torch.Tensor:
                tensor.record_stream(stream)  # its memory belongs to the stream of the copy
                return tensor

            return self.tensors.map(used)
        return self.tensors
