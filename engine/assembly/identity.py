"""The identity of a pipeline: what a checkpoint must have in common with it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.assembly.endpoints import MIXED
from engine.assembly.parts import Parts
from engine.config import SinkTable
from engine.running.checkpoint import Tolerated
from engine.types.changes import compared_settings


def identity_of(parts: Parts) -> dict[str, str]:
    """Return everything that the meaning of a state depends on, name -> text. A difference in a
    `Tolerated` text is only logged. A checkpoint without a state holds positions and counts, which
    stay valid with another schema or other stages."""
    pipeline, scrub = parts.pipeline, parts.scrub
    columns = {name: str(dtype) for name, dtype in scrub.source_schema.items()}
    read = {
        "schema": json.dumps(columns, sort_keys=True),
        "scrub": json.dumps(pipeline.scrub),
    }
    settings = {"pipeline": pipeline.name, **dict(_settings(parts))}
    if parts.served.predictor is not None:
        read["served model"] = parts.served.predictor.info()["digest"]
    if not parts.keeps_state:
        return {**settings, **{name: Tolerated(text) for name, text in read.items()}}
    identity = {**settings, **read, **dict(_files(parts))}
    return {**identity, **dict(_learned(parts))} if pipeline.trains else identity


def _settings(parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the settings whose change is logged or refused: ``[table] key`` and its JSON value."""
    endpoints, pipeline = parts.endpoints, parts.pipeline
    source, _ = endpoints.source, endpoints.sinks  # building them fills `configured`
    kinds = {section: given.kind for section, given in endpoints.configured.items()}
    for section, kind in {"sink": None, **kinds}.items():
        yield f"[{section}] kind", json.dumps(kind)
    in_effect = source.in_effect()
    tables = [(section, given.settings) for section, given in endpoints.configured.items()]
    tables.append(("loader", pipeline.loader))
    if pipeline.sink is not None:
        tables.append(("sink", SinkTable.model_validate(pipeline.sink)))
    if pipeline.trains:
        tables.append(("evaluation", parts.model.evaluation.settings))
    for section, settings in tables:
        mixed = section.startswith(MIXED)
        values = in_effect.get(section.removeprefix(MIXED), {}) if mixed else in_effect
        values = values if section.startswith("source") else {}
        compared = compared_settings(settings, values, learns=parts.keeps_state)
        for key, (act, value) in compared.items():
            text = json.dumps(value, sort_keys=True)
            yield f"[{section}] {key}", text if act == "refuse" else Tolerated(text)


def _files(parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the digests of files that stages read: the pipeline file holds only their names."""
    for stage in parts.scrub.stages:
        digest = stage.digest()
        if digest is not None:
            yield f"file for stage {stage.name}", digest


def _learned(parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the model and the wrappers of the learner; the rest is in the learner's own
    state."""
    pipeline, model = parts.pipeline, parts.model
    learned = {k: v for k, v in (pipeline.model or {}).items() if k != "threshold"}
    yield "model", json.dumps(learned, sort_keys=True)
    sampled = "sampling" in (pipeline.train or {})
    yield "[train] sampling", json.dumps("given" if sampled else "none")
    yield "[train] forget_on", json.dumps(model.forget_on)
    if not model.common_settings.classes and model.features.classes:
        yield "classes", json.dumps(model.features.classes)


__all__ = ["identity_of"]
