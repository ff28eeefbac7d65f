"""headrace's loader as a torchdata node, for tools that take torchdata's nodes or loaders."""

from __future__ import annotations

from typing import Any, TypeVar

from torchdata.nodes import BaseNode, Loader

from engine.loading.nodes import Node

T = TypeVar("T")


class TorchdataNode(BaseNode[T]):
    """A node as a torchdata node, to put before other nodes of torchdata.

    Args:
        node: whose items it gives.
    """

    def __init__(self, node: Node[T]) -> None:
        super().__init__()
        self._node = node

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._node.reset(initial_state)

    def next(self) -> T:
        return next(self._node)

    def get_state(self) -> dict[str, Any] | None:
        return self._node.state_dict()


def torchdata_loader(node: Node[T]) -> Loader[T]:
    """Return a node as torchdata's stateful loader. Each ``for`` starts from the beginning, or
    from a loaded state."""
    return Loader(TorchdataNode(node), restart_on_stop_iteration=False)


__all__ = ["TorchdataNode", "torchdata_loader"]
