"""A node that runs the nodes before it on a separate thread, ahead of the consumer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from engine.loading.channel import Channel, Closed
from engine.loading.nodes import Node
from engine.observing import compiling
from engine.types import EndOfStream, HeadraceError

T = TypeVar("T")
JOIN_SECONDS = 10.0
"""The seconds `close` waits for a thread, while no loop is compiled; longer means that a source or
stage does not return as promised."""


class PrefetchNode(Node[T], Generic[T]):
    """Runs the node before it on a thread, ahead of the consumer, up to a number of bytes.

    Args:
        node: the node before; only the thread touches it from now on.
        channel: the queue in between, with its bound.
    """

    def __init__(self, node: Node[T], make_channel: Callable[[], Channel[Any]], name: str) -> None:
        super().__init__()
        self._node = node
        self._name = name
        self._make_channel = make_channel
        self._channel: Channel[Any] | None = None
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] | None = None

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        self._stop()
        super().reset(initial_state)
        self._state = initial_state
        self._channel = channel = self._make_channel()
        # The thread holds the node and the channel but not this object, so a forgotten loader can
        # be collected.
        self._thread = threading.Thread(
            target=_produce,
            args=(self._node, initial_state, channel),
            name=f"headrace-{self._name}",
            daemon=True,
        )
        weakref.finalize(self, channel.close)
        self._thread.start()

    def next(self) -> T:
        return self.next_within(None)

    def next_within(self, timeout: float | None) -> T:
        """Return the next item. Raises: Empty if it does not come within `timeout` seconds;
        StopIteration at the end."""
        assert self._channel is not None, "reset comes first"
        try:
            taken: tuple[T, dict[str, Any]] = self._channel.get(timeout)
        except EndOfStream:
            raise StopIteration from None
        item, self._state = taken
        return item

    def poke(self) -> None:
        """Let a `next_within` that waits raise Empty before its time. Any thread may call it."""
        if self._channel is not None:
            self._channel.poke()

    def get_state(self) -> dict[str, Any] | None:
        return self._state

    @property
    def channel(self) -> Channel[Any] | None:
        return self._channel

    def interrupt(self) -> None:
        """Close this queue and all before it, so that their threads end. Any thread may call it."""
        if self._channel is not None:
            self._channel.close()
        self._node.interrupt()

    def halt(self) -> None:
        """End this thread and all before it, and wait for them; nothing is closed. Raises:
        HeadraceError if one does not end."""
        self._stop()
        self._node.halt()

    def close(self) -> None:
        """Halt, close the node before. Raises: HeadraceError if a thread does not end."""
        self.halt()
        self._node.close()

    def _stop(self) -> None:
        self.interrupt()
        thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread():
            return
        compiled = -1.0
        while thread.is_alive():
            if compiling.seconds() == compiled:
                raise HeadraceError(
                    f"The {self._name} thread did not end within {JOIN_SECONDS:.0f} s: a source's "
                    "read or a stage's apply must return in bounded time."
                )
            compiled = compiling.seconds()
            thread.join(JOIN_SECONDS)


def _produce(node: Node[T], state: dict[str, Any] | None, channel: Channel[Any]) -> None:
    """The thread: everything the node gives goes into the channel, its end and its errors too."""
    try:
        node.reset(state)
        keep_alive = node.keep_alive
        while True:
            channel.await_room(keep_alive)
            item = next(node)
            # "Nothing came" is news only to a consumer that has nothing else to do.
            if item is not None or not len(channel):
                channel.put((item, node.state_dict()), keep_alive)
            del item  # or the last item's memory would stay while the next is awaited
    except StopIteration:
        channel.finish()
    except Closed:
        channel.close()
    except BaseException as error:  # noqa: BLE001 - an error must reach the for-loop, whatever it is
        channel.fail(error)


__all__ = ["PrefetchNode"]
