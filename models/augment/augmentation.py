"""Augmentation: changes rows before a learner learns from them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.types import Features, HeadraceError, Learner, Tensors, UserError
from engine.user_code.calls import Calling, named


class AugmentSettings(types.Settings):
    """Settings of every kind of augmentation.

    Attributes:
        seed: of the random generator; tables with the same seed still draw independently.
    """

    seed: int = Field(0, ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The learner that an augment works for.

    Attributes:
        features: what the learner reads.
        soft: whether it takes targets that are shares of classes.
        encoders: column of lists -> what numbers its single tokens, words or whole numbers, as in
            the lists; 0 is unknown. Of columns that a stage has numbered.
    """

    features: Features
    soft: bool = False
    encoders: Mapping[str, Callable[[pl.Series], NDArray[np.int64]]] = field(default_factory=dict)


class Augment(ABC):
    """One change of rows before they are learned. Built as ``Kind(name, settings)`` with its own
    nested ``Settings``, a subclass of `AugmentSettings`. It has no state.

    Attributes:
        name: the table's.
        settings: its own.
    """

    name: str
    settings: Any

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def where(self) -> str:
        """How error sentences name the table."""
        return f"[augment.{self.name}]"

    def bind(self, context: Context) -> None:
        """Look up the features it changes.

        Raises: UserError naming table and key where it does not fit the features or the learner.
        """
        return

    @abstractmethod
    def apply(self, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
        """Return the changed rows, as many and in the same order, on the same device, and how
        many changed. Never edits its input in place; all random numbers come from `rng`."""


class Augmentation:
    """The augments of a learner, applied one after the other::

        Augmentation([Jitter("noise", Jitter.Settings(scale=0.05))]).attach(learner)

    A learner scores the rows as they are and learns from what this makes of them: nothing that is
    scored, evaluated, held out, exported or served is ever changed.

    Chance is a function of the table's seed and name and of the number of the batch that is learned
    (and of the step within it, where kept rows are learned again), by a counter-based generator
    (Philox: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011). So there is no
    state to save: a learner that goes on with batch i draws for it what it would have drawn.

    Raises: UserError for two augments of one name.
    """

    def __init__(self, augments: Sequence[Augment]) -> None:
        self.augments = tuple(augments)
        names = Counter(augment.name for augment in augments)
        for name, times in names.items():
            if times > 1:
                raise UserError(f"There are {times} augments named '{name}': rename one.")

    def attach(
        self,
        learner: Learner,
        encoders: Mapping[str, Callable[[pl.Series], NDArray[np.int64]]] | None = None,
    ) -> None:
        """Make the learner learn from augmented rows. If it is wrapped
        (`models.learners.sampling.ResampledLearner`,
        `models.challenge.challenger.ChampionChallenger`), the inner learner does: resampled rows
        are augmented.

        Args:
            encoders: as in `Context`; for `synonyms` of words.

        Raises: UserError if the learner has no place for it, or an augment does not fit.
        """
        learner.augment_with(self)
        context = Context(
            features=learner.features, soft=learner.soft_targets, encoders=encoders or {}
        )
        for augment in self.augments:
            with Calling(f"augment.{augment.name}", augment):
                augment.bind(context)

    def __call__(
        self, tensors: Tensors, number: int, step: int = 0
    ) -> tuple[Tensors, dict[str, int]]:
        """Return the rows to learn from, and how many rows each augment changed.

        Args:
            tensors: with targets, n rows.
            number: of what was learned before, in batches or rows; each batch has its own.
            step: within the batch.
        """
        changed = {}
        tensors = replace(tensors, on_device=None)  # a copy of the rows as they were
        for augment in self.augments:
            rng = rng_for(augment.settings.seed, augment.name, number, step)
            with Calling(f"augment.{augment.name}", augment):
                tensors, changed[augment.name] = _applied(augment, tensors, rng)
        return tensors, changed


def _applied(augment: Augment, tensors: Tensors, rng: np.random.Generator) -> tuple[Tensors, int]:
    """Raises: HeadraceError if that is not as many rows, and how many were changed."""
    done: Any = augment.apply(tensors, rng)
    if isinstance(done, tuple) and len(done) == 2 and isinstance(done[0], Tensors):
        if len(done[0]) == len(tensors) and isinstance(done[1], int | np.integer):
            return done[0], int(done[1])
        got = f"{len(done[0]):,} rows and {done[1]!r}"
    else:
        got = "None" if done is None else f"a {type(done).__name__}"
    raise HeadraceError(
        f"{named(f'augment.{augment.name}', augment)} returned {got} from apply of "
        f"{len(tensors):,} rows: expected as many rows as engine.types.Tensors, and how many of "
        "them were changed."
    )


def rng_for(seed: int, name: str, number: int, step: int = 0) -> np.random.Generator:
    """Return a generator that depends only on these four numbers. Each can draw 2**128 blocks
    before it would meet the next step's."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]
    counter = np.array([0, 0, step, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64), counter=counter))


__all__ = ["Augment", "AugmentSettings", "Augmentation", "Context", "rng_for"]
