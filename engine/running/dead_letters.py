"""Dead letters: rejected rows with reason, position and original record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from engine.types import (
    NO_TIMESTAMP,
    PARTITION,
    POSITION,
    RESERVED,
    Records,
    Rejects,
    Values,
    bytes_as_hex,
)
from engine.types.arrays import Ints

DEAD_LETTER_COLUMNS = {
    PARTITION: pl.String(),
    POSITION: pl.Int64(),
    "stage": pl.String(),
    "reason": pl.String(),
    "detail": pl.String(),
    "value": pl.String(),
    "timestamp": pl.Int64(),
    "raw": pl.Binary(),
    "key": pl.Binary(),
    "headers": pl.Binary(),
    "replayed": pl.String(),
}
"""The columns of a dead letter. ``value`` is for people: the row as text if it could not be
decoded, shortened; else as JSON with the values that ``stage`` received. ``raw`` is the original
record, with ``key`` and ``headers`` if the source has them; for a columnar source it is the row
as it was read, as JSON, and null if it contains bytes, which JSON does not have. ``timestamp``:
ms since the epoch. ``replayed``: the place of the dead letter that was replayed and rejected again
(partition/position); null for a row that was read for the first time."""


def dead_letter_frame(reject: Rejects, pieces: Sequence[Records]) -> pl.DataFrame:
    """Return rejected rows as dead letters, see `DEAD_LETTER_COLUMNS`.

    Args:
        pieces: the records that the batch was made of; those that are missing leave nulls.
    """
    rows = reject.rows.select(PARTITION, POSITION, "detail", "value")
    n = rows.height
    columns: dict[str, list[bytes | None]] = {
        name: [None] * n for name in ("raw", "key", "headers")
    }
    times: list[int | None] = [None] * n
    replayed: list[str | None] = [None] * n
    for piece in pieces:
        here, at = _matching_rows(piece, rows)
        values = piece.values if isinstance(piece.values, Values) else None
        if isinstance(piece.values, pl.DataFrame) and pl.Binary not in piece.values.dtypes:
            for row, text in zip(here.tolist(), _as_json(piece.values[at]), strict=True):
                columns["raw"][row] = text.encode()
        for name, part in (("raw", values), ("key", piece.keys), ("headers", piece.headers)):
            if part is not None:
                for row, value in zip(here.tolist(), part.take(at), strict=True):
                    columns[name][row] = value
        if piece.timestamps is not None:
            for row, stamp in zip(here.tolist(), piece.timestamps[at].tolist(), strict=True):
                times[row] = None if stamp == NO_TIMESTAMP else stamp
        if piece.origins is not None:
            for row, letter in zip(here.tolist(), piece.positions[at].tolist(), strict=True):
                replayed[row] = f"{piece.partition}/{letter}"
    return rows.with_columns(
        stage=pl.lit(reject.stage),
        reason=pl.lit(reject.reason),
        timestamp=pl.Series(times, dtype=pl.Int64),
        replayed=pl.Series(replayed, dtype=pl.String),
        **{name: pl.Series(values, dtype=pl.Binary) for name, values in columns.items()},
    ).select(pl.col(name).cast(dtype) for name, dtype in DEAD_LETTER_COLUMNS.items())


def _as_json(frame: pl.DataFrame) -> pl.Series:
    detail = (
        bytes_as_hex(pl.col(c), kind).alias(c)
        for c, kind in frame.schema.items()
        if c not in RESERVED
    )
    return frame.select(pl.struct(detail).struct.json_encode()).to_series()


def _matching_rows(piece: Records, rows: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return which rows come from these records, and from which of them."""
    if piece.origins is not None:  # in no order, and one may be there twice
        known = piece.origins.with_row_index("at").unique([PARTITION, POSITION], keep="first")
        both = rows.with_row_index("row").join(known, on=[PARTITION, POSITION])
        return both["row"].cast(pl.Int64).to_numpy(), both["at"].cast(pl.Int64).to_numpy()
    here = np.flatnonzero(rows[PARTITION].to_numpy() == piece.partition)
    wanted = rows[POSITION].to_numpy()[here]
    at = np.searchsorted(piece.positions, wanted)
    inside = at < len(piece)
    inside[inside] = piece.positions[at[inside]] == wanted[inside]
    return here[inside], at[inside]


__all__ = ["DEAD_LETTER_COLUMNS", "dead_letter_frame"]
