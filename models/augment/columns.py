"""Which features an augment changes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.types import UserError, nearest


def places(patterns: Iterable[str], names: Sequence[str], *, where: str) -> NDArray[np.int64]:
    """Where the features stand that names and globs ("count_lag_*") mean, ascending.

    Raises: UserError for a name or glob that means no feature.
    """
    found: set[int] = set()
    for pattern in patterns:
        here = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
        if pattern in names:
            here = [names.index(pattern)]
        if not here:
            raise UserError(
                f"{where} columns names '{pattern}', which is none of the features of [model] that "
                f"it can change.{nearest(pattern, names)}"
            )
        found.update(here)
    return np.array(sorted(found), np.int64)


__all__ = ["places"]
