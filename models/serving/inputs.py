"""Feeds a graph that was made elsewhere: which columns each of its inputs reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from engine.types import PART, RESERVED, Batch, Schema, UserError, nearest, type_name
from engine.types.toml import toml_key
from models.column_arrays import Array
from models.serving.feeders import EXAMPLE_LENGTH, Constant, Feeder, ListFeeder, MaskFeeder
from models.serving.fitting import Fitting
from models.serving.settings import InputSettings
from models.serving.signature import TEXT, GraphValue, listed

MASK = "_mask"
"""NAME_mask is the mask of the lists that NAME reads."""
ATTENTION = "attention_mask"
"""What transformers call it."""


class GraphInputs:
    """The feeders of all inputs of a graph.

    Attributes:
        tables: input -> what it reads.
        feeders: of the inputs that read columns; a mask stands behind its lists.
        constants: the other inputs.
        remarks: what a user should know of them.

    Args:
        values: the graph's inputs.
        given: input -> its table of the pipeline file.
        schema: the columns that there are.
        where: the file, for sentences.

    Raises: UserError for an input that no column fits.
    """

    def __init__(
        self,
        values: Sequence[GraphValue],
        given: Mapping[str, InputSettings],
        schema: Schema,
        where: str,
    ) -> None:
        self._values, self._where = values, where
        self._schema = {c: t for c, t in schema.items() if c not in (*RESERVED, PART)}
        self._fitting = Fitting(values, self._schema, where)
        self.remarks: list[str] = []
        known = {value.name for value in values}
        for name in given:
            if name not in known:
                raise UserError(
                    f"[infer.inputs] names '{name}', which is no input of {where}."
                    f"{nearest(name, known)}"
                )
        self.tables = dict(given)
        self.tables |= self._matched(given)
        feeders: dict[str, Feeder] = {}
        masks: dict[GraphValue, str] = {}
        constants: list[Constant] = []
        masked = {settings.mask for settings in self.tables.values()}
        for value in values:
            settings = self.tables[value.name]
            if settings.constant is not None:
                constants.append(self._fitting.constant(value, settings.constant))
            elif settings.mask is not None:
                masks[value] = settings.mask
            else:
                of_mask = not masked.isdisjoint(settings.columns)
                feeders[value.name] = self._fitting.feeder(value, settings, masked=of_mask)
        for value, column in masks.items():
            feeders[value.name] = self._fitting.mask(value, column, feeders.values())
        self.constants = tuple(constants)
        self.feeders: tuple[Feeder, ...] = tuple(feeders.values())
        self.remarks += [remark for feeder in self.feeders for remark in feeder.remarks]
        self._require_lengths()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the graph reads."""
        return tuple(dict.fromkeys(c for feeder in self.feeders for c in feeder.columns))

    @property
    def batch_size(self) -> int | None:
        """The number of rows that the graph takes at a time; None for any.

        Raises: UserError if its inputs disagree.
        """
        sizes = {
            feeder.value.shape[0]
            for feeder in self.feeders
            if feeder.value.shape and isinstance(feeder.value.shape[0], int)
        }
        if len(sizes) > 1:
            raise UserError(
                f"{self._where} takes different numbers of rows in its inputs "
                f"{listed(self._values)}: give those that are the same for every row by "
                "[infer.inputs.NAME] constant."
            )
        return next((int(size) for size in sizes if isinstance(size, int)), None)

    @property
    def row_bytes(self) -> int:
        """The bytes of a row of all arrays, with lists of a few values."""
        return sum(
            math.prod(EXAMPLE_LENGTH if size is None else size for size in feeder.row)
            * (8 if feeder.value.type == TEXT else np.dtype(feeder.value.type).itemsize)
            for feeder in self.feeders
        )

    def usable(self, batch: Batch) -> Batch:
        """Return the batch without the rows that the graph cannot take."""
        for feeder in self.feeders:
            batch = feeder.usable(batch)
        return batch

    def feed(self, frame: pl.DataFrame) -> dict[str, Array]:
        """Return the array of each input."""
        return self._fed(lambda feeder, feed: feeder.array(frame, feed), frame.height)

    def example(self, rows: int, *, zeros: bool) -> dict[str, Array]:
        """Return arrays of made-up rows."""
        rng = np.random.default_rng(0)
        return self._fed(lambda feeder, _: feeder.example(rows, rng, zeros=zeros), rows)

    def _fed(
        self, make: Callable[[Feeder, Mapping[str, Array]], Array], rows: int
    ) -> dict[str, Array]:
        feed: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for feeder in self.feeders:
            feed[feeder.name] = array = make(feeder, feed)
            named = zip(feeder.value.shape or (), array.shape, strict=False)
            sizes |= {size: n for size, n in named if isinstance(size, str)}
        for constant in self.constants:
            feed[constant.value.name] = constant.array(rows, sizes)
        return feed

    # ------------------------------------------------------------------------------ which columns

    def _matched(self, given: Mapping[str, InputSettings]) -> dict[str, InputSettings]:
        """Return inputs of which the file says nothing -> what they read."""
        matched: dict[str, InputSettings] = {}
        left = [value for value in self._values if value.name not in given]
        for value in left:
            if value.name in self._schema:
                matched[value.name] = InputSettings(columns=(value.name,))
        left = [value for value in left if value.name not in matched]
        for value in left:
            lists = self._lists_of(value.name, {**given, **matched})
            if lists is not None:
                matched[value.name] = InputSettings(mask=lists)
        left = [value for value in left if value.name not in matched]
        if len(left) == 1:
            matched |= self._only_one(left[0], {**given, **matched})
        missing = [value for value in left if value.name not in matched]
        if missing:
            raise UserError(self._unmatched(missing))
        if matched:
            pairs = ", ".join(
                f"{name} <- {', '.join(i.columns) or f'where {i.mask} has values'}"
                for name, i in matched.items()
            )
            self.remarks.append(f"{self._where}: inputs matched with columns: {pairs}")
        return matched

    def _lists_of(self, name: str, known: Mapping[str, InputSettings]) -> str | None:
        """Return the column of lists that a mask of this name is of."""
        lists = {
            input: settings.columns[0]
            for input, settings in known.items()
            if len(settings.columns) == 1
            and isinstance(self._schema.get(settings.columns[0]), pl.List)
        }
        if name.endswith(MASK) and name.removesuffix(MASK) in lists:
            return lists[name.removesuffix(MASK)]
        if name == ATTENTION and len(set(lists.values())) == 1:
            return next(iter(lists.values()))
        return None

    def _only_one(
        self, value: GraphValue, known: Mapping[str, InputSettings]
    ) -> dict[str, InputSettings]:
        """Return the one column that fits the one input left, if there is one only."""
        used = {c for settings in known.values() for c in settings.columns}
        fitting = []
        for column in self._schema.keys() - used:
            settings = InputSettings(columns=(column,))
            try:
                self._fitting.feeder(value, settings, masked=False)
            except UserError:
                continue
            fitting.append(settings)
        return {value.name: fitting[0]} if len(fitting) == 1 else {}

    def _unmatched(self, missing: Sequence[GraphValue]) -> str:
        named = ", ".join(f"{toml_key(value.name)} = [...]" for value in missing)
        columns = ", ".join(f"{c} ({type_name(t)})" for c, t in self._schema.items())
        some = (
            ", ".join(value.name for value in missing) if len(missing) < len(self._values) else ""
        )
        which = f", and no column is called {some}" if some else ""
        return (
            f"{self._where} reads {listed(self._values)}{which}: say which columns they read, in "
            f"their order, by [infer] inputs = {{{named}}}; there are {columns or 'none'}."
        )

    def _require_lengths(self) -> None:
        """Check that lists are padded in the same way whatever their batch."""
        masked = {feeder.columns for feeder in self.feeders if isinstance(feeder, MaskFeeder)}
        for feeder in self.feeders:
            free = isinstance(feeder, ListFeeder) and feeder.length is None
            if free and feeder.columns not in masked:
                raise UserError(
                    f"{self._where} reads lists of any length in '{feeder.name}' and no mask, so a "
                    "row's answer would depend on the longest list of its batch: set "
                    f"[infer.inputs.{feeder.name}] length."
                )


__all__ = ["GraphInputs"]
