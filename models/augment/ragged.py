"""List arithmetic: drops, swaps and replaces tokens.

Functions on rows of different lengths, back to back: row i is
``values[offsets[i]:offsets[i + 1]]``. Values have shape (total,), offsets (n + 1,) from 0; nothing
is edited in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types.arrays import Bools, Ints

TokenLists = NDArray[Any]


def kept_tokens(offsets: Ints, share: float, rng: np.random.Generator) -> Bools:
    """Return which values stay when each is dropped with probability `share` (random deletion:
    Wei and Zou, "EDA: Easy Data Augmentation Techniques", 2019), shape (total,). A row with any
    value keeps at least one."""
    drawn = rng.random(int(offsets[-1]))
    kept: Bools = drawn >= share
    lengths = np.diff(offsets)
    starts = offsets[:-1][lengths > 0]  # reduceat takes no empty rows
    if len(starts):
        row = np.repeat(np.arange(len(starts)), lengths[lengths > 0])
        most = np.maximum.reduceat(drawn, starts)
        kept |= ~np.logical_or.reduceat(kept, starts)[row] & (drawn == most[row])
    return kept


def filtered(values: TokenLists, offsets: Ints, kept: Bools) -> tuple[TokenLists, Ints]:
    """Return the rows with only those values."""
    return values[kept], np.concatenate(([0], np.cumsum(kept)))[offsets]


def swapped(offsets: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Return where each value comes from when neighbours in a row swap, shape (total,).

    Each row is cut into pairs, from its first or second value on, whichever was drawn; each pair is
    swapped with probability `share`. So this share of the values moves, by one place; but for the
    ends of a row that have no partner.
    """
    total = int(offsets[-1])
    lengths = np.diff(offsets)
    place = np.arange(total) - np.repeat(offsets[:-1], lengths)
    first = rng.integers(0, 2, len(lengths))
    opens = (place >= np.repeat(first, lengths)) & ((place - np.repeat(first, lengths)) % 2 == 0)
    opens &= place + 1 < np.repeat(lengths, lengths)
    left = np.flatnonzero(opens & (rng.random(total) < share))
    source = np.arange(total)
    source[left], source[left + 1] = left + 1, left
    return source


@dataclass(frozen=True, slots=True, kw_only=True)
class SynonymTable:
    """The tokens that may replace a token.

    Attributes:
        tokens: those that have any, ascending, each once, shape (k,).
        bounds: those of token i are ``likes[bounds[i]:bounds[i + 1]]``, shape (k + 1,).
        synonyms: shape (pairs,).
    """

    tokens: Ints
    bounds: Ints
    synonyms: Ints

    @classmethod
    def of(cls, tokens: Ints, synonyms: Ints) -> SynonymTable:
        """Build the table from pairs of a token and its synonym."""
        order = np.argsort(tokens, kind="stable")
        some, starts = np.unique(tokens[order], return_index=True)
        return cls(tokens=some, bounds=np.append(starts, len(tokens)), synonyms=synonyms[order])

    def replaced(self, values: Ints, share: float, rng: np.random.Generator) -> Ints:
        """Replace each value that has synonyms by one of them with probability `share` (synonym
        replacement: Wei and Zou, 2019), shape (total,)."""
        if not len(self.tokens):
            return values
        drawn = np.flatnonzero(rng.random(len(values)) < share)
        which = rng.random(len(drawn))
        at = np.searchsorted(self.tokens, values[drawn]).clip(max=len(self.tokens) - 1)
        known = self.tokens[at] == values[drawn]
        start, many = self.bounds[at], np.diff(self.bounds)[at]
        row_index = self.synonyms[start + (which * many).astype(np.int64)]
        out = values.copy()
        out[drawn[known]] = row_index[known]
        return out


def changed_rows(offsets: Ints, changed: Bools) -> int:
    """Return how many rows contain one of these values."""
    sums = np.concatenate(([0], np.cumsum(changed)))[offsets]
    return int((np.diff(sums) > 0).sum())


__all__ = ["SynonymTable", "changed_rows", "filtered", "kept_tokens", "swapped"]
