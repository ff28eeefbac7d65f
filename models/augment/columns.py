"""The features an augment changes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.types import UserError, nearest


def chosen(patterns: Iterable[str], names: Iterable[str], *, where: str) -> tuple[str, ...]:
    """Return the features that names and globs ("count_lag_*") stand for, in the model's order.

    Raises: UserError for a name or glob that means no feature.
    """
    names, selected = list(names), set[str]()
    for pattern in patterns:
        here = [pattern] if pattern in names else fnmatch.filter(names, pattern)
        if not here:
            raise UserError(
                f"{where} columns: '{pattern}' matches no feature of [model] that it can change."
                f"{nearest(pattern, names)}"
            )
        selected.update(here)
    return tuple(name for name in names if name in selected)


def places(patterns: Iterable[str], names: Sequence[str], *, where: str) -> NDArray[np.int64]:
    """Return their indexes among the features, ascending."""
    selected = chosen(patterns, names, where=where)
    return np.array([names.index(name) for name in selected], np.int64)


__all__ = ["chosen", "places"]
