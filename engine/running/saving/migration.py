"""Adapts a checkpoint to a pipeline that was mended, to replay the rows it rejected.

A run goes on from a checkpoint only with the pipeline that wrote it: it promises the same to the
bit. A replay promises less: how a record becomes a row may change (the schema, settings of the
source such as null_values, the file of a lookup), a stage may come, and a stage without a state may
go or change. What was learned stays as it is, so a column from which it was learned keeps its type,
or is a number as it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.projection import named_columns
from engine.running.saving.codec import Saved
from engine.scrub.base import FittedStage, snapshots
from engine.types import (
    Features,
    HeadraceError,
    Schema,
    Settings,
    Snapshot,
    Stage,
    UserError,
    parse_type,
    type_name,
)

log = logging.getLogger("headrace.mend")
FILE = "file for stage "
"""The prefix of an identity's keys that are files of stages."""
Scrub = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundStages:
    """Bound stages, the columns after them, and the model's features; None without training."""

    stages: Sequence[Stage]
    schema: Schema
    features: Features | None


def migrate(
    saved: Saved,
    identity: Mapping[str, str],
    now: BoundStages,
    earlier: Callable[[Scrub, Mapping[str, str]], BoundStages],
) -> Saved:
    """Return the checkpoint as this pipeline may take it, if only its stages and the types of
    columns differ: new stages start without state.

    Args:
        identity: of the pipeline as it is now.
        earlier: the chain of other tables of [scrub] over other columns of the same source.

    Raises: UserError if a state would be lost, or what has learned would get other columns.
    """
    here: Scrub = json.loads(identity.get("scrub", "{}"))
    was: Scrub = json.loads(saved.identity.get("scrub", "{}"))
    same_stages = list(here.items()) == list(was.items())
    if same_stages and _columns(saved.identity) == _columns(identity):
        return saved
    kept: dict[str, Snapshot] = {}
    if "scrub" in saved.identity:  # else there was no state at all
        try:
            before = earlier(was, json.loads(saved.identity.get("schema", "{}")))
        except HeadraceError:
            if same_stages:
                raise
            return saved  # these stages make no sense any more: it is refused as another scrub
        kept = snapshots(before.stages)
        _require_same(kept, snapshots(now.stages), here, was)
        if before.features != now.features:
            raise UserError(
                f"{'The schema was' if same_stages else 'The stages of [scrub] were'} changed so "
                "that [model] gets other features than its weights have learned: keep the features "
                "as they were (a 'missing' stage without 'indicator'), or train anew with --fresh."
            )
        _require_types(before, now, kept)
        if kept or now.features is not None:
            _require_files(saved.identity, identity)
    fresh = snapshots(now.stages)
    cold = {name: state for name, state in fresh.items() if name not in kept}
    new = [f"[scrub.{name}]" for name in here if name not in was]
    if new:
        log.info(
            "%s %s new%s; the other stages go on with what they know",
            ", ".join(new),
            "is" if len(new) == 1 else "are",
            " and knows nothing yet" if cold else "",
        )
    stages = {**saved.state["stages"], **cold}
    files = {key: value for key, value in identity.items() if key.startswith(FILE)}
    same = {k: v for k, v in saved.identity.items() if k in files or not k.startswith(FILE)}
    if "scrub" not in saved.identity and now.features is None:
        same = {**identity, "pipeline": saved.identity["pipeline"]}
    return saved._replace(
        state={**saved.state, "stages": stages},
        identity={**files, **same, "scrub": identity.get("scrub", "{}")},
    )


def _require_same(
    kept: Mapping[str, Snapshot], now: Mapping[str, Snapshot], here: Scrub, was: Scrub
) -> None:
    """Raises: UserError if a stage that has learned is not what it was."""
    for name, state in kept.items():
        gone = name not in here
        if gone or here[name] != was[name] or _shape(state) != _shape(now.get(name)):
            what = "taken out" if gone else "changed, or the columns that it gets,"
            raise UserError(
                f"[scrub.{name}] was {what} and has learned from what was read: its state would be "
                "lost. A replay takes new stages, and changed ones that learn nothing; leave this "
                "one as it was, or start over with --fresh."
            )
    if [name for name in here if name in kept] != [name for name in was if name in kept]:
        raise UserError(
            "The stages of [scrub] that learn stand in another order than in the run: leave them "
            "so, or start over with --fresh."
        )


def _require_types(before: BoundStages, now: BoundStages, kept: Collection[str]) -> None:
    """Raises: UserError if a column has another type than what has learned from it takes."""
    later = {stage.name: stage for stage in now.stages}
    for stage in before.stages:
        if stage.name in kept:
            schemas = [_bound_to(chain) for chain in (stage, later[stage.name])]
            _require_alike(stage.where, _compared_columns(stage, schemas[0]), *schemas)
    if (features := now.features) is not None:
        keys = () if features.state is None else features.state.columns
        exact = dict.fromkeys((*features.categories, *features.nested, *keys), False)
        columns = {**dict.fromkeys((*features.numeric, features.target or ""), True), **exact}
        _require_alike("[model]", columns, before.schema, now.schema)


def _compared_columns(stage: Stage, schema: Schema) -> dict[str, bool]:
    """Return the columns that a stage reads, and whether any number does: of a statistic it does,
    but a key is another one as a float."""
    if not isinstance(stage.settings, Settings):
        return dict.fromkeys(schema, False)
    table = stage.settings.model_dump()
    keys = named_columns([{"by": table.get("by")}], schema)
    numbers = isinstance(stage, FittedStage)
    return {column: numbers and column not in keys for column in named_columns([table], schema)}


def _require_alike(where: str, columns: Mapping[str, bool], was: Schema, now: Schema) -> None:
    """Raises: UserError if a column has another type; where any number does, if it is none."""
    for column, any_number in columns.items():
        types = was.get(column), now.get(column)
        if None in types or types[0] == types[1]:
            continue
        if not any_number or not all(dtype is not None and dtype.is_numeric() for dtype in types):
            before, after = (type_name(dtype) for dtype in types if dtype is not None)
            raise UserError(
                f"{where} has learned from column '{column}' as {before}, and it is {after} now: a "
                "replay takes another type of a number that is no key, and of columns that nothing "
                "has learned from. Leave this one as it was, or start over with --fresh."
            )


def _require_files(was: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises: UserError if a column from a stage's file has another type than before."""
    for key in was.keys() & here.keys():
        if key.startswith(FILE):
            names = [json.loads(text)["columns"] for text in (was[key], here[key])]
            schemas = [{c: _type(name) for c, name in columns.items()} for columns in names]
            where = f"What is behind [scrub.{key.removeprefix(FILE)}]"
            _require_alike(where, dict.fromkeys(schemas[0], True), *schemas)


def _type(name: str) -> pl.DataType:
    """Return the type of a name; of no known kind for one that no pipeline file can have."""
    try:
        return parse_type(name)
    except ValueError:
        return pl.Unknown()


def _columns(identity: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of an identity that say which columns there are."""
    return {k: str(v) for k, v in identity.items() if k == "schema" or k.startswith(FILE)}


def _bound_to(stage: Stage) -> Schema:
    """Return the columns before a bound stage."""
    return {} if stage.bound is None else stage.bound[0]


def _shape(state: Snapshot) -> Any:
    """Return the structure of an untrained state."""
    if isinstance(state, Mapping):
        return {key: _shape(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_shape(value) for value in state]
    if isinstance(state, np.ndarray):
        return state.shape
    if isinstance(state, pl.DataFrame):
        return state.schema
    return type(state)


__all__ = ["BoundStages", "migrate"]
