"""A format that wraps another one."""

from __future__ import annotations

from engine.types import Format, Schema


class WrappingFormat(Format):
    """See `engine.types.Format`: another one, and something around it. What is said to it goes to
    the one inside.

    Attributes:
        inner: the other one.
    """

    def __init__(self, inner: Format) -> None:
        self.inner = inner

    def schema(self, declared: Schema) -> Schema | None:
        """Return the inner format's schema."""
        return self.inner.schema(declared)

    def interrupt(self) -> None:
        """See `engine.types.Format`."""
        self.inner.interrupt()

    def resume(self) -> None:
        """See `engine.types.Format`."""
        self.inner.resume()


__all__ = ["WrappingFormat"]
