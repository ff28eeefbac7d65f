"""Asks the memory for what a compiled loop reads soon, so that the loop does not wait for it."""

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


__all__ = ["prefetch"]
