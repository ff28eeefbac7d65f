"""A network inside a model file that torch runs: of a module that cannot become ONNX.

The graph of the file ends where the network begins. The properties of the file hold its weights and
scales, as numbers alone, and the import string of its class: the class itself is code, and whoever
serves the file must name it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from engine.types import Features, Snapshot

ARRAY = "array"
"""The key under which the outline of a state names an array."""
FEATURES = TypeAdapter(Features)


def pack(
    module: str, settings: str, training: str, features: Features, state: Snapshot
) -> dict[str, str]:
    """Return a network as properties of a model file.

    Args:
        module: import string of its class.
        settings, training: ``[model]`` and ``[train]``, as JSON.
        state: what scoring needs, as a plain value.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    return {
        "module": module,
        "settings": settings,
        "training": training,
        "reads": FEATURES.dump_json(features, exclude_defaults=True).decode(),
        "outline": json.dumps(_outline(state, arrays)),
        "arrays": base64.b64encode(save(arrays)).decode(),
    }


def features_of(properties: Mapping[str, str]) -> Features:
    """Return the features that were packed."""
    return FEATURES.validate_json(properties["reads"])


def state_of(properties: Mapping[str, str]) -> Any:
    """Return the state that was packed."""
    from safetensors.numpy import load

    arrays = load(base64.b64decode(properties["arrays"]))
    return _filled(json.loads(properties["outline"]), arrays)


def _outline(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a plain value with its arrays moved to `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[str(len(arrays))] = np.array(value, order="C")
        return {ARRAY: str(len(arrays) - 1)}
    if isinstance(value, Mapping):
        return {"value": {key: _outline(inner, arrays) for key, inner in value.items()}}
    if isinstance(value, list | tuple):
        return [_outline(inner, arrays) for inner in value]
    return value


def _filled(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, Mapping):
        if ARRAY in value:
            return np.array(arrays[value[ARRAY]])
        return {key: _filled(inner, arrays) for key, inner in value["value"].items()}
    if isinstance(value, list):
        return [_filled(inner, arrays) for inner in value]
    return value


__all__ = ["features_of", "pack", "state_of"]
