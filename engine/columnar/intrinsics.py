"""What Python has no words for, in compiled loops: ask the memory for what is read soon, read where
no array is, and keep a function out of the loop that calls it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # whose types are those of the function below
_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_READ, _KEEP, _DATA = _INT(0), _INT(3), _INT(1)


def _fetch(builder: Any, address: Any) -> None:
    pointer = builder.inttoptr(address, _BYTE.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(prefetch, [pointer, _READ, _KEEP, _DATA])


@_intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, array: Any, row: Any, offset: Any) -> Any:
    """In a compiled loop: fetch the cache line of a row of an array, so many bytes behind its
    start. The place may be outside of the array: nothing is read."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        cells = context.make_array(signature.args[0])(context, builder, given[0])
        start = builder.ptrtoint(cells.data, _LONG)
        step = builder.extract_value(cells.strides, 0)
        _fetch(builder, builder.add(builder.add(start, builder.mul(step, given[1])), given[2]))
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def fetch(_typing: Any, address: Any) -> Any:
    """In a compiled loop: fetch the cache line at an address, which may be any."""

    def code(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        _fetch(builder, given[0])
        return context.get_dummy_value()

    return types.void(types.uint64), code


@_intrinsic  # type: ignore[untyped-decorator]
def word_at(_typing: Any, address: Any) -> Any:
    """In a compiled loop: return the eight bytes at an address, the first as the lowest."""

    def code(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.load(builder.inttoptr(given[0], _LONG.as_pointer()), align=1)

    return types.uint64(types.uint64), code


@_intrinsic  # type: ignore[untyped-decorator]
def byte_at(_typing: Any, address: Any) -> Any:
    """In a compiled loop: return the byte at an address."""

    def code(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        byte = builder.load(builder.inttoptr(given[0], _BYTE.as_pointer()), align=1)
        return builder.zext(byte, _LONG)

    return types.uint64(types.uint64), code


@_intrinsic  # type: ignore[untyped-decorator]
def apart(_typing: Any) -> Any:
    """In a compiled function that is called now and then: LLVM does not copy it to where it is
    called. The time to compile a function grows faster than its length."""

    def code(context: Any, builder: Any, _signature: Any, _given: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), code


__all__ = ["apart", "byte_at", "fetch", "prefetch", "word_at"]
