"""Which output of a network stands for which class, where classes come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from engine.types.arrays import Ints


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSlots:
    """The network has an output for every class that may come, its slot. A class keeps its slot
    whatever number it has, so that nothing moves in the network. A value: changes make a new one.

    Attributes:
        most: outputs of the network.
        slots: of each class, shape (classes,).
        used: slots that ever had a class; they are the first ones.
    """

    most: int
    slots: Ints = field(default_factory=_none)
    used: int = 0

    def moved(self, sources: Sequence[int]) -> ClassSlots:
        """Return the slots for classes of other numbers; see `engine.types.Learner.set_classes`. A
        new class gets a slot that had none, while there is one."""
        kept = set(self.slots[[source for source in sources if source >= 0]].tolist())
        free = [*range(self.used, self.most), *(s for s in range(self.used) if s not in kept)]
        new = iter(free)
        slots = [int(self.slots[source]) if source >= 0 else next(new) for source in sources]
        used = max([self.used, *(slot + 1 for slot in slots)])
        return ClassSlots(most=self.most, slots=np.array(slots, np.int64), used=used)

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a plain value."""
        return {"most": self.most, "slots": self.slots, "used": self.used}

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Self:
        """Return the slots of a `snapshot`."""
        return cls(**value)


__all__ = ["ClassSlots"]
