"""Restores the newest checkpoint outside a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from engine.assembly.identity import identity_of
from engine.assembly.parts import Parts
from engine.config import detached_tables
from engine.observing.metrics import Metrics
from engine.running.saving.codec import require_plain
from engine.running.totals import Totals
from engine.scrub.base import restore as restore_stages
from engine.scrub.base import snapshots
from engine.types import EndOfStream, Mark, SharedSource, Snapshot

TRIED_BYTES, TRIED_SECONDS = 1 << 20, 1.0
"""The limits of the one read that tries whether a source can resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a checkpoint says of itself.

    Attributes:
        mark: the position that stages and learner have both reached.
        learned: rows that were learned before it.
    """

    mark: Mark
    learned: int


def restore(parts: Parts) -> Restored | None:
    """Restore stages and learner from the newest checkpoint; None without one."""
    state = _restored(parts, alone=True)
    if state is None:
        return None
    return Restored(mark=_mark(state), learned=Totals.restore(state["totals"]).learned)


def try_resume(parts: Parts) -> None:
    """Try a resume as far as possible without writing anything or joining a group.

    Raises: UserError, HeadraceError if a run would.
    """
    state = _restored(parts)
    if state is None:
        return
    for section, sink in parts.endpoints.sinks.items():
        sink.require(state[section])
    source = parts.endpoints.source
    if isinstance(source, SharedSource) and source.shares_partitions:
        return  # only members of its group learn the positions
    detached = detached_tables(parts.pipeline)
    other = Parts(parts.pipeline.model_copy(update=detached), Metrics())
    _ = other.scrub.source_schema
    with contextlib.closing(other.endpoints.source) as tried, contextlib.suppress(EndOfStream):
        tried.match_identities(state["identities"])
        tried.seek(_mark(state))
        tried.read(1, TRIED_BYTES, TRIED_SECONDS)


def require_plain_state(parts: Parts) -> None:
    """Raises: HeadraceError if a checkpoint cannot hold the state of stages or learner."""
    require_plain(_state(parts))


def _restored(parts: Parts, *, alone: bool = False) -> Mapping[str, Snapshot] | None:
    checkpoints = parts.endpoints.checkpoints
    state = checkpoints.load(identity_of(parts), alone=alone)
    if state is None:
        return None
    with checkpoints.restoring(state, lambda: {**dict.fromkeys(state), **_state(parts)}):
        restore_stages(parts.scrub.stages, state["stages"])
        parts.work.load_state_dict(state["work"])
    return state


def _state(parts: Parts) -> dict[str, Snapshot]:
    """Return the part of a checkpoint that is restored here."""
    return {"stages": snapshots(parts.scrub.stages), "work": parts.work.state_dict()}


def _mark(state: Mapping[str, Snapshot]) -> Mark:
    return Mark(positions=state["positions"], stages=state["stages"])


__all__ = ["Restored", "require_plain_state", "restore", "try_resume"]
