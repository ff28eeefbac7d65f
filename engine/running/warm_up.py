"""Sends synthetic rows through the stages before the first record: compiled loops compile at
their first use, which takes seconds without a cache, and the first record should not wait for
that."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from engine.columnar.batch_group import BatchGroup
from engine.scrub.fusion import FusedStages, fuse
from engine.types import Batch, Mark, Schema, Stage

log = logging.getLogger("headrace.rehearsal")
ROWS = 1_024
"""Enough rows to fill the default windows of stages."""


def warm_up(
    schema: Schema, stages: Sequence[Stage], collate: Callable[[Batch], Batch] | None
) -> None:
    """Send a batch through stages and collation twice: the second time they have learned
    something.

    User-defined stages are left out, because they may have side effects. An error here would also
    occur with a record, and is reported then.

    Args:
        schema: of what is decoded.
        stages: bound, and of no further use: they have learned the rows.
    """
    own = [stage for stage in stages if type(stage).__module__.startswith("engine.")]
    steps = list(fuse(own))
    frame = synthetic_frame(schema)
    try:
        for _ in range(2):
            batch_group = BatchGroup.of(Batch(frame=frame, mark=Mark(), arrived=time.monotonic()))
            for step in steps:
                if isinstance(step, FusedStages):
                    batch_group = step.apply(batch_group, lambda *_, **__: None)
                else:
                    batch_group = batch_group.map(step.apply)
            if collate is not None:
                batch_group.map(collate)
    except Exception as error:  # noqa: BLE001 - a real record will say it
        log.debug("the rehearsal ended early: %s", error)


def synthetic_frame(schema: Schema, rows: int = ROWS) -> pl.DataFrame:
    """Return small numbers and their digits as text, every eighth row null; nested columns are
    all null."""
    numbers = np.arange(rows)
    some = pl.Series(numbers % 100, dtype=pl.Int64).set(pl.Series(numbers % 8 == 7), None)
    return pl.DataFrame([_column(name, dtype, some) for name, dtype in schema.items()])


def _column(name: str, dtype: pl.DataType, numbers: pl.Series) -> pl.Series:
    if dtype == pl.Boolean:
        numbers = numbers % 2
    elif dtype == pl.Binary:
        numbers = numbers.cast(pl.String)
    elif not (dtype.is_numeric() or dtype.is_temporal() or dtype == pl.String):
        return pl.Series(name, [None] * len(numbers), dtype)
    return numbers.cast(dtype).alias(name)


__all__ = ["ROWS", "synthetic_frame", "warm_up"]
