"""Augments text as lists of tokens: drops, swaps, replaces by synonyms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine.types import Features, Name, Padded, Ragged, Tensors, UserError, first_line, type_name
from engine.types.arrays import Ints
from models.augment.augmentation import Augment, AugmentSettings, Context
from models.augment.columns import chosen
from models.augment.ragged import SynonymTable, changed_rows, filtered, kept_tokens, swapped

ChangedRows = tuple[NDArray[Any], Ints, int]
"""Values, offsets, and how many rows were changed."""


class TokenSettings(AugmentSettings):
    """Settings of every kind that changes lists.

    Attributes:
        columns: of `ragged` and `padded` lists, names or globs.
    """

    columns: tuple[str, ...] = ("*",)


class TokenAugment(Augment):
    """The base class of list augments: lists as values and offsets, whichever layout they have."""

    _columns: tuple[str, ...] = ()

    def bind(self, context: Context) -> None:
        names = [*context.features.ragged, *context.features.padded]
        self._columns = chosen(self.settings.columns, names, where=self.where)

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
        ragged, padded, most = dict(tensors.ragged), dict(tensors.padded), 0
        for column in self._columns:
            if column in ragged:
                ragged[column], changed = self._ragged(column, ragged[column], rng)
            else:
                padded[column], changed = self._padded(column, padded[column], rng)
            most = max(most, changed)
        return dataclasses.replace(tensors, ragged=ragged, padded=padded), most

    def _changed(
        self, column: str, values: NDArray[Any], offsets: Ints, rng: np.random.Generator
    ) -> ChangedRows:
        """Return the changed lists of a column, no longer than before."""
        raise NotImplementedError

    def _ragged(self, column: str, rows: Ragged, rng: np.random.Generator) -> tuple[Ragged, int]:
        given = rows.values.cpu().numpy(), rows.offsets.cpu().numpy()
        values, offsets, changed = self._changed(column, *given, rng)
        device = rows.values.device
        result = Ragged(
            values=torch.from_numpy(values).to(device), offsets=torch.from_numpy(offsets).to(device)
        )
        return result, changed

    def _padded(self, column: str, rows: Padded, rng: np.random.Generator) -> tuple[Padded, int]:
        mask, filled = rows.mask.cpu().numpy(), rows.values.cpu().numpy()
        offsets = np.concatenate(([0], np.cumsum(mask.sum(axis=1, dtype=np.int64))))
        values, ends, changed = self._changed(column, filled[mask], offsets, rng)
        new_mask = np.arange(mask.shape[1]) < np.diff(ends)[:, None]
        padded_values = np.zeros_like(filled)
        padded_values[new_mask] = values
        device = rows.values.device
        return Padded(
            values=torch.from_numpy(padded_values).to(device),
            mask=torch.from_numpy(new_mask).to(device),
        ), changed


class TokenDropout(TokenAugment):
    """Drops tokens; a list with any token keeps one (Wei and Zou, "EDA: Easy Data Augmentation
    Techniques", 2019)."""

    class Settings(TokenSettings):
        """``[augment.NAME]`` with ``kind = "token_dropout"``

        Attributes:
            share [share]: of the tokens that are left out (0-1), each on its own.
        """

        share: float = Field(0.1, ge=0, le=1)

    def _changed(
        self, column: str, values: NDArray[Any], offsets: Ints, rng: np.random.Generator
    ) -> ChangedRows:
        kept = kept_tokens(offsets, self.settings.share, rng)
        return *filtered(values, offsets, kept), changed_rows(offsets, ~kept)


class TokenSwap(TokenAugment):
    """Swaps tokens with a neighbour. A model that reads a list as a set, such as the mean of its
    vectors, sees no difference."""

    class Settings(TokenSettings):
        """``[augment.NAME]`` with ``kind = "token_swap"``

        Attributes:
            share [share]: of the tokens that move (0-1), two by two.
        """

        share: float = Field(0.1, ge=0, le=1)

    def _changed(
        self, column: str, values: NDArray[Any], offsets: Ints, rng: np.random.Generator
    ) -> ChangedRows:
        source = swapped(offsets, self.settings.share, rng)
        return values[source], offsets, changed_rows(offsets, source != np.arange(len(source)))


class Synonyms(TokenAugment):
    """Replaces tokens by synonyms from your table."""

    class Settings(TokenSettings):
        """``[augment.NAME]`` with ``kind = "synonyms"``

        Attributes:
            table: a CSV (with a head line) or Parquet file: a token in the first column, what may
                stand in its place in the second, a pair a row. Tokens are words where a 'tokens'
                stage numbers them, else the numbers themselves.
            share [share]: of the tokens in the table that are replaced (0-1), each on its own.
        """

        table: Name
        share: float = Field(0.1, ge=0, le=1)

    def __init__(self, name: str, settings: Any) -> None:
        super().__init__(name, settings)
        self._synonyms: dict[str, SynonymTable] = {}

    def bind(self, context: Context) -> None:
        super().bind(context)
        pairs = self._read()
        for column in self._columns:
            tokens, likes = (self._numbers(column, pairs[:, i], context) for i in range(2))
            known = (tokens > 0) & (likes > 0) & (tokens != likes)
            if not known.any():
                raise UserError(
                    f"{self.where} table '{self.settings.table}' has no two tokens that column "
                    f"'{column}' knows: expected one such pair at least."
                )
            self._synonyms[column] = SynonymTable.of(tokens[known], likes[known])

    def _changed(
        self, column: str, values: NDArray[Any], offsets: Ints, rng: np.random.Generator
    ) -> ChangedRows:
        replaced = self._synonyms[column].replaced(values, self.settings.share, rng)
        return replaced, offsets, changed_rows(offsets, replaced != values)

    def _read(self) -> pl.DataFrame:
        path = Path(self.settings.table)
        where = f"{self.where} table '{path}'"
        try:
            read = pl.read_parquet if path.suffix == ".parquet" else pl.read_csv
            pairs = read(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = first_line(error)
            raise UserError(f"{where} cannot be read: {reason}.") from None
        if pairs.width < 2:
            raise UserError(f"{where} expects two columns, token and synonym, got {pairs.width}.")
        return pairs[:, :2].drop_nulls()

    def _numbers(self, column: str, words: pl.Series, context: Context) -> Ints:
        """Return the ids of tokens; 0 for unknown ones."""
        encode = context.encoders.get(column)
        if encode is not None:
            return encode(words)
        if not words.dtype.is_integer():
            raise UserError(
                f"{self.where} table '{self.settings.table}' expects numbers, got "
                f"{type_name(words.dtype)}: "
                f"no 'tokens' stage says how the words of column '{column}' are numbered."
            )
        numbers = words.cast(pl.Int64).to_numpy()
        size = _size(column, context.features)
        if len(numbers) and size and not (numbers.min() >= 0 and numbers.max() < size):
            raise UserError(
                f"{self.where} table '{self.settings.table}' expects ids from 0 to {size - 1} for "
                f"column '{column}', got {numbers.min()} to {numbers.max()}."
            )
        return numbers


def _size(column: str, features: Features) -> int:
    """Return the number of ids of a column; 0 if unknown."""
    return features.ragged.get(column, features.padded.get(column, 0))


__all__ = ["Synonyms", "TokenAugment", "TokenDropout", "TokenSettings", "TokenSwap"]
