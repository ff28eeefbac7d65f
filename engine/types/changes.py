"""What a changed setting means for a resumed run.

The second run goes on where the first one's checkpoint ends. What the checkpoint holds was made
under the settings of then: a position means something only in the order in which rows were read, a
state only with rows that are read as those it has seen. So every setting says, where it is
declared, what a change of it comes to; see `Change`. A key without such a mark, of a class of one's
own, is `Free`. Tables of [scrub] are compared as they stand in the file, but for keys that are
`Warned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel

from engine.types import Snapshot

T = TypeVar("T")
Act = Literal["refuse", "tell", "go on"]


class Change(Enum):
    """What to do about a setting that differs from the run before: with learned state, and
    without.

    Attributes:
        FIXED: it decides what a position means.
        MEANING: it decides what a row means.
        LEARNED: a state depends on it, and nothing else does.
        TOLD: what comes from here on is another.
        FREE: rows and their order stay, or the source or sink itself knows its place again.
    """

    _value_: tuple[Act, Act]

    FIXED = ("refuse", "refuse")
    MEANING = ("refuse", "tell")
    LEARNED = ("refuse", "go on")
    WARNED = ("tell", "tell")
    FREE = ("go on", "go on")

    def act(self, *, learns: bool) -> Act:
        """Return the action for a pipeline with or without learned state."""
        with_state, without = self._value_
        return with_state if learns else without


Fixed = Annotated[T, Change.FIXED]
Meaning = Annotated[T, Change.MEANING]
Learned = Annotated[T, Change.LEARNED]
Warned = Annotated[T, Change.WARNED]
Free = Annotated[T, Change.FREE]

NEUTRAL = object()
Neutral = Annotated[T, NEUTRAL]
"""A key of a stage on which no value that a row gets depends: where the stage is applied, what it
still learns, how fast it is. All other keys are the same where a model is trained and where it
serves."""


def change_of(settings: type[BaseModel], key: str) -> Change | None:
    """Return the mark of a key; None without one."""
    marks = settings.model_fields[key].metadata
    return next((mark for mark in marks if isinstance(mark, Change)), None)


def neutral_keys(settings: type[BaseModel]) -> set[str]:
    """Return the keys that are `Neutral`."""
    fields = settings.model_fields.items()
    return {key for key, field in fields if any(mark is NEUTRAL for mark in field.metadata)}


def compared_settings(
    settings: BaseModel, in_effect: Mapping[str, Snapshot], *, learns: bool
) -> dict[str, tuple[Act, Any]]:
    """Return the keys whose change matters: the action, and the value as JSON.

    Args:
        in_effect: values of keys that others, or the environment, decide where they are left out.
        learns: whether the pipeline has a state.
    """
    acts = {
        key: (change_of(type(settings), key) or Change.FREE).act(learns=learns)
        for key in type(settings).model_fields
    }
    kept = {key for key, act in acts.items() if act != "go on"}
    values = {**settings.model_dump(mode="json", include=kept), **in_effect}
    return {key: (acts[key], values[key]) for key in acts if key in kept}


__all__ = [
    "Act",
    "Change",
    "Fixed",
    "Free",
    "Learned",
    "Meaning",
    "Neutral",
    "Warned",
    "change_of",
    "compared_settings",
    "neutral_keys",
]
