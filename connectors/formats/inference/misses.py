"""Counts rows rejected because of an inferred type, and names the declaration that accepts them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from connectors.formats.inference.infer import common_type, infer_type
from connectors.formats.kernels.rows import OUT_OF_RANGE, WRONG_TYPE, select_records
from connectors.formats.values.casts import cast, swap_points_and_commas
from connectors.formats.wrapping import WrappingFormat
from engine.types import POSITION, Format, Records, Rejects, Schema, type_name
from engine.types.plural import counted
from engine.types.toml import toml_value

log = logging.getLogger("headrace.files")


@dataclass(slots=True, kw_only=True)
class InferenceMisses:
    """The rows that the inferred type of a column rejected.

    Attributes:
        dtype: the guess.
        taker: the narrowest type that takes all values seen.
        value: the first that the guess did not take.
        rows: how many.
    """

    dtype: pl.DataType
    taker: pl.DataType
    value: str
    rows: int = 0

    def sentence(self, column: str) -> str:
        """Return one sentence."""
        return (
            f"{counted(self.rows, 'row')} rejected: the type of column '{column}' is a guess, "
            f"{type_name(self.dtype)}, and '{self.value[:80]}' is none; declare "
            f'{toml_value(column)} = "{type_name(self.taker)}" in [source.schema].'
        )


class InferredTypes(WrappingFormat):
    """Wraps a format with inferred types: a warning names the first value that one of them
    rejected.

    Args:
        inner: of text.
        decimal: tells the decimal point of its numbers.

    Attributes:
        columns: the guessed ones.
    """

    def __init__(self, inner: Format, decimal: Callable[[], str]) -> None:
        super().__init__(inner)
        self._decimal = decimal
        self._misses: dict[str, InferenceMisses] = {}
        self._lock = threading.Lock()
        self.columns: frozenset[str] = frozenset()

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode with the inner format."""
        frame, rejects = self.inner.decode(records, schema)
        mine = {c: t for c, t in schema.items() if c in self.columns and t != pl.String}
        odd = [r.rows[POSITION] for r in rejects if r.reason in (WRONG_TYPE, OUT_OF_RANGE)]
        if odd and mine:
            at = np.searchsorted(records.positions, pl.concat(odd).to_numpy())
            self._look(select_records(records, np.sort(at)), mine)
        return frame, rejects

    def misses(self) -> list[str]:
        """Return a sentence for each column whose inferred type rejected rows."""
        return [cost.sentence(column) for column, cost in self._misses.items()]

    def _look(self, records: Records, guesses: Schema) -> None:
        """Find which inferred types rejected which values."""
        plain = {c: t for c, t in guesses.items() if not t.is_nested()}
        texts, _ = self.inner.decode(records, dict.fromkeys(plain, pl.String()))
        decimal = self._decimal()
        for column, dtype in plain.items():
            text = texts[column]
            read = swap_points_and_commas(text) if decimal == "," and dtype.is_numeric() else text
            lost = text.filter(read.is_not_null() & cast(read, dtype, written=True).is_null())
            if len(lost):
                self._note(column, dtype, lost, common_type(dtype, infer_type(lost, decimal)))

    def _note(self, column: str, dtype: pl.DataType, lost: pl.Series, taker: pl.DataType) -> None:
        with self._lock:
            first = column not in self._misses
            cost = self._misses.setdefault(
                column, InferenceMisses(dtype=dtype, taker=taker, value=str(lost[0]))
            )
            cost.rows += len(lost)
            cost.taker = common_type(cost.taker, taker)
        if first:
            log.warning("%s", cost.sentence(column))


__all__ = ["InferredTypes"]
