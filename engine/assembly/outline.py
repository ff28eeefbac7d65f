"""The outline of a pipeline for its live page: what it reads, does and writes."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from engine.assembly.endpoints import Endpoints
from engine.config import Pipeline
from engine.types import Features

PLACES = ("path", "topics", "topic", "group_id", "format")
"""The keys of an endpoint that say where it is. Others are not shown: a class of one's own may have
a secret in any of them."""


def outline(pipeline: Pipeline, endpoints: Endpoints, features: Features | None) -> dict[str, Any]:
    """Return it as plain values.

    Args:
        features: those of the model in training; None if nothing learns.
    """
    _ = endpoints.source, endpoints.sinks  # only what is built is in `configured`
    ends = {
        section: {"kind": each.kind, **_places(each.settings)}
        for section, each in endpoints.configured.items()
    }
    return {
        "name": pipeline.name,
        "work": "learns" if features else "predicts" if pipeline.infer else "cleans",
        "endpoints": ends,
        "stages": list(pipeline.scrub),
        "expected_rejects": list(pipeline.dead_letters.expected),
        "model": _model(pipeline, features),
        "checkpoints": str(endpoints.checkpoints.settings.path),
        "versions": str(pipeline.versions_path) if pipeline.exports else None,
    }


def _places(settings: BaseModel) -> dict[str, Any]:
    """Return the places among the settings as text, without the login that an address may have."""
    places = settings.model_dump(mode="json", include=set(PLACES), exclude_none=True)
    texts = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in places.items()
    }
    return {key: re.sub(r"//[^/@\s]*@", "//***@", text) for key, text in texts.items()}


def _model(pipeline: Pipeline, features: Features | None) -> dict[str, Any] | None:
    if features is None:
        return None if pipeline.infer is None else {"path": str(pipeline.infer.get("model", ""))}
    return {
        "kind": (pipeline.model or {}).get("kind"),
        "task": features.task,
        "target": features.target,
    }


__all__ = ["outline"]
