"""A format that wraps another one."""

from __future__ import annotations

from engine.types import Format, Schema


class WrappingFormat(Format):
    """The base class of formats around another one; every call is forwarded to the inner format.

    Attributes:
        inner: the other one.
    """

    def __init__(self, inner: Format) -> None:
        self.inner = inner

    def schema(self, declared: Schema) -> Schema | None:
        """Return the inner format's schema."""
        return self.inner.schema(declared)

    def interrupt(self) -> None:
        self.inner.interrupt()

    def resume(self) -> None:
        self.inner.resume()


__all__ = ["WrappingFormat"]
