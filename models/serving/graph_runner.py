"""Runs a graph over the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from engine.types import HeadraceError
from engine.types.arrays import Bools
from engine.types.plural import counted
from models.column_arrays import Array
from models.serving.session import complaint
from models.serving.signature import GraphValue


class GraphRunner:
    """Runs a graph over all rows, or over as many at a time as it takes. Where it fails for some,
    it is run on ever fewer, until the rows are known for which it fails alone.

    Args:
        session: of ONNX Runtime.
        outputs: name -> the output as a trial gave it.
        fixed: the inputs that are the same for all rows.
        batch_size: the rows that it takes at a time; None for any number.
        where: the file, for sentences.
    """

    def __init__(
        self,
        session: Any,
        outputs: Mapping[str, GraphValue],
        fixed: frozenset[str],
        batch_size: int | None,
        where: str,
    ) -> None:
        self._session = session
        self._outputs = outputs
        self._fixed = fixed
        self._batch_size = batch_size
        self._where = where

    def run(self, feed: Mapping[str, Array], rows: int) -> tuple[dict[str, Array], dict[int, str]]:
        """Return the outputs for the rows that have any, and row -> why it has none.

        Raises: HeadraceError if it does not give an answer for each row.
        """
        parts: list[dict[str, Array]] = []
        reasons: dict[int, str] = {}
        size = self._batch_size or max(1, rows)
        spans = [(start, min(start + size, rows)) for start in range(0, rows, size)][::-1]
        while spans:
            start, stop = spans.pop()
            try:
                parts.append(self._run(feed, slice(start, stop), rows))
            except HeadraceError:
                raise
            except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds, all its own
                if stop - start == 1:
                    reasons[start] = complaint(error)
                    continue
                middle = (start + stop) // 2
                spans += [(middle, stop), (start, middle)]
        return {name: self._joined(name, parts) for name in self._outputs}, reasons

    def whole(self, feed: Mapping[str, Array], rows: int) -> Bools:
        """Return which rows have finite inputs only, shape (n,)."""
        return finite((array for name, array in feed.items() if name not in self._fixed), rows)

    def _run(self, feed: Mapping[str, Array], span: slice, rows: int) -> dict[str, Array]:
        """Run some of the rows. Raises: what ONNX Runtime raises."""
        count = span.stop - span.start
        size = self._batch_size or count
        part = feed
        if not size == count == rows:
            at = np.minimum(np.arange(span.start, span.start + size), span.stop - 1)
            part = {n: a if n in self._fixed else a[at] for n, a in feed.items()}
        outputs = self._session.run(list(self._outputs), dict(part))
        named = dict(zip(self._outputs, outputs, strict=True))
        for name, array in named.items():
            if not array.ndim or len(array) != size:
                raise HeadraceError(
                    f"{self._where}: output '{name}' for {counted(size, 'row')} has shape "
                    f"{array.shape}: expected an answer for each row."
                )
        return {name: array[:count] for name, array in named.items()}

    def _joined(self, name: str, parts: list[dict[str, Array]]) -> Array:
        arrays = [part[name] for part in parts]
        if len(arrays) == 1:
            return arrays[0]
        if not arrays:  # ONNX Runtime ends the process for 0 rows of some operators
            value = self._outputs[name]
            sizes = [size if isinstance(size, int) else 1 for size in value.row]
            return np.empty((0, *sizes), value.type)
        if len({array.shape[1:] for array in arrays}) > 1:
            raise HeadraceError(
                f"{self._where}: output '{name}' has different shapes in parts of a batch: lower "
                "[loader] batch_rows to the rows that it takes at a time."
            )
        return np.concatenate(arrays)


def finite(arrays: Iterable[Array], rows: int) -> Bools:
    """Return which rows of arrays with a row each hold finite numbers only, shape (n,)."""
    all_finite = np.ones(rows, np.bool_)
    for array in arrays:
        if array.dtype.kind == "f" and not (good := np.isfinite(array)).all():
            all_finite &= good.reshape(len(array), -1).all(axis=1)
    return all_finite


__all__ = ["GraphRunner", "finite"]
