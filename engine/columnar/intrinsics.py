"""What Python has no words for, in compiled loops: ask the memory for what is read soon, and keep a
function out of the loop that calls it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # whose types are those of the function below
_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_READ, _KEEP, _DATA = _INT(0), _INT(3), _INT(1)


@_intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, array: Any, row: Any, offset: Any) -> Any:
    """In a compiled loop: fetch the cache line of a row of an array, so many bytes behind its
    start. The place may be outside of the array: nothing is read."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        cells = context.make_array(signature.args[0])(context, builder, given[0])
        start = builder.ptrtoint(cells.data, _LONG)
        step = builder.extract_value(cells.strides, 0)
        place = builder.add(builder.add(start, builder.mul(step, given[1])), given[2])
        pointer = builder.inttoptr(place, _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(fetch, [pointer, _READ, _KEEP, _DATA])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def apart(_typing: Any) -> Any:
    """In a compiled function that is called now and then: LLVM does not copy it to where it is
    called. The time to compile a function grows faster than its length."""

    def code(context: Any, builder: Any, _signature: Any, _given: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), code


__all__ = ["apart", "prefetch"]
