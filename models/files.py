"""Model files on the disk: written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from engine import atomic


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model as a file. Raises: OSError."""
    return put(model.SerializeToString(), path)


def put(data: bytes, path: Path) -> Path:
    """Write a model file's content, whole or not at all. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, data)


def metadata(path: Path) -> dict[str, str]:
    """A model file's properties, read without running it."""
    model = onnx.load(path, load_external_data=False)
    return {prop.key: prop.value for prop in model.metadata_props}


def annotate(path: Path, properties: Mapping[str, str]) -> Path:
    """Add properties to a model file. Raises: OSError."""
    model = onnx.load(path, load_external_data=False)
    kept = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **properties})
    return write(model, path)


__all__ = ["annotate", "metadata", "put", "write"]
