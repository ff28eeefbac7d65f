"""Adapts a checkpoint to a pipeline whose stages were fixed, to replay the rows they rejected.

A run goes on from a checkpoint only with the stages that wrote it: it promises the same to the bit.
A replay promises less, so a stage may come, a stage without a state may go or change, and what the
others have learned stays as it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.running.checkpoint import Saved
from engine.scrub.base import snapshots
from engine.types import Features, HeadraceError, Snapshot, Stage, UserError

log = logging.getLogger("headrace.mend")
FILE = "file for stage "
"""The prefix of an identity's keys that are files of stages."""
Scrub = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundStages:
    """Bound stages, and the columns the model reads after them; None without training."""

    stages: Sequence[Stage]
    features: Features | None


def migrate(
    saved: Saved,
    identity: Mapping[str, str],
    now: BoundStages,
    earlier: Callable[[Scrub], BoundStages],
) -> Saved:
    """Return the checkpoint as this pipeline may take it, if only its stages differ: new ones
    start without state.

    Args:
        identity: of the pipeline as it is now.
        earlier: the chain of other tables of [scrub], over the same source.

    Raises: UserError if a state would be lost, or the model would get other features.
    """
    here: Scrub = json.loads(identity.get("scrub", "{}"))
    was: Scrub = json.loads(saved.identity.get("scrub", "{}"))
    if list(here.items()) == list(was.items()):
        return saved
    kept: dict[str, Snapshot] = {}
    if "scrub" in saved.identity:  # else there was no state at all
        try:
            before = earlier(was)
        except HeadraceError:
            return saved  # these stages make no sense any more: it is refused as another scrub
        kept = snapshots(before.stages)
        _require_same(kept, snapshots(now.stages), here, was)
        if before.features != now.features:
            raise UserError(
                "The stages of [scrub] were changed so that [model] gets other features than its "
                "weights have learned: keep the features as they were (a 'missing' stage without "
                "'indicator'), or train anew with --fresh."
            )
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
    same = {key: value for key, value in saved.identity.items() if not key.startswith(FILE)}
    if "scrub" not in saved.identity and now.features is None:
        same = {**identity, "pipeline": saved.identity["pipeline"]}
    return saved._replace(
        state={**saved.state, "stages": stages},
        identity={**same, "scrub": identity.get("scrub", "{}"), **files},
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
