"""The protocol of torchdata's nodes, without torch: what the loader is made of.

An engine that cleans or serves needs no torch: half a GiB and two seconds at each start. So nodes
and loader have the methods of `torchdata.nodes.BaseNode` and `Loader` and not their class;
`engine.loading.loader.Loader.torchdata` is the loader as one of torchdata's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Node(Iterator[T], Generic[T]):
    """A step that gives items one by one, and has a state.

    A subclass has `reset`, which calls this one's, `next` and `get_state`. Who uses it calls
    `next()` on it, which resets it the first time.
    """

    def __init__(self) -> None:
        self._is_reset = False

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Go to a state from `state_dict`; to the start without one."""
        self._is_reset = True

    def next(self) -> T:
        """Return the next item. Raises: StopIteration at the end."""
        raise NotImplementedError(type(self))

    def get_state(self) -> dict[str, Any] | None:
        """Return the state at the next item; None at the start."""
        raise NotImplementedError(type(self))

    @property
    def keep_alive(self) -> Callable[[], None] | None:
        """What to call while the output queue is full; None if there is no such queue."""
        return None

    def interrupt(self) -> None:
        """Let the threads before it end soon. Any thread may call it."""
        return

    def halt(self) -> None:
        """End those threads, and wait for them; nothing is closed."""
        return

    def close(self) -> None:
        """Release what is open."""
        return

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state after the last item given."""
        self._at_first()
        return self.get_state()

    def __next__(self) -> T:
        self._at_first()
        return self.next()

    def _at_first(self) -> None:
        if not self._is_reset:
            self.reset(None)


class Items(Generic[T]):
    """Iterates over a node, from the start or a loaded state: each ``for`` anew.

    Args:
        root: the last node.
    """

    def __init__(self, root: Node[T]) -> None:
        self.root = root
        self._loaded: dict[str, Any] | None = None
        self._asked = False

    def __iter__(self) -> Iterator[T]:
        if self._asked:  # only to say where it is
            self._asked = False
        else:
            loaded, self._loaded = self._loaded, None
            self.root.reset(loaded)
        return self.root

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state after the last item taken."""
        if self._loaded is not None or not self.root._is_reset:
            iter(self)
            self._asked = True
        return self.root.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Start the next loop at a state."""
        self._loaded = state


__all__ = ["Items", "Node"]
