"""Reads an ONNX file. Imports neither torch nor polars, so that a child process that looks at one
starts in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import first_line

if TYPE_CHECKING:
    import onnx


def parsed(path: Path) -> onnx.ModelProto:
    """Return the model without its external data. Raises: OSError; ValueError if it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(first_line(error)) from None
    if not model.ir_version:
        raise ValueError("it names no version of ONNX")
    return model


__all__ = ["parsed"]
