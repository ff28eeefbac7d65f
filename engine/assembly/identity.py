"""The identity of a pipeline: what a checkpoint must have in common with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from engine.assembly.endpoints import MIXED
from engine.assembly.parts import Parts
from engine.assembly.saved_schema import type_names
from engine.config import SinkTable
from engine.loading.sources.labelled_source import LABELS, ROWS, SECTION
from engine.running.saving.checkpoint import Tolerated
from engine.running.saving.migration import FILE
from engine.types import Stage
from engine.types.changes import Change, change_of, compared_settings


def identity_of(parts: Parts) -> dict[str, str]:
    """Return everything that the meaning of a state depends on, name -> text. A difference in a
    `Tolerated` text is only logged. A checkpoint without a state holds positions and counts, which
    stay valid with another schema or other stages. A replay reads dead letters as the file says
    now: `migrate` checks that what was learned fits."""
    pipeline, scrub = parts.pipeline, parts.scrub
    schema = json.dumps(type_names(scrub.source_schema), sort_keys=True)
    read = {"schema": _mendable(parts)(schema), "scrub": json.dumps(_stage_tables(parts))}
    if (labelled := parts.endpoints.labelled) is not None:
        read["schema of labels"] = json.dumps(type_names(labelled.label_schema), sort_keys=True)
    settings = {"pipeline": pipeline.name, **dict(_settings(parts))}
    if parts.served.predictor is not None:
        digest = parts.served.predictor.info()["digest"]
        read["served model"] = Tolerated(digest) if parts.served.follows_versions else digest
    if not parts.keeps_state:
        tolerated = {**read, **dict(_files(parts))}
        return {**settings, **{name: Tolerated(text) for name, text in tolerated.items()}}
    identity = {**settings, **read, **dict(_files(parts))}
    return {**identity, **dict(_learned(parts))} if pipeline.trains else identity


def _settings(parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the settings whose change is logged or refused: ``[table] key`` and its JSON value."""
    endpoints, pipeline = parts.endpoints, parts.pipeline
    # Building them fills `configured`.
    source, _, _ = endpoints.source, endpoints.sinks, parts.scrub.stages
    kinds = {section: given.kind for section, given in endpoints.configured.items()}
    for section, kind in {"sink": None, **kinds}.items():
        yield f"[{section}] kind", json.dumps(kind)
    if pipeline.infer is not None:
        for key in ("inputs", "outputs"):
            text = json.dumps(pipeline.infer.get(key, {}), sort_keys=True)
            yield f"[infer] {key}", Tolerated(text)
    in_effect = source.in_effect()
    tables = [(section, given.settings) for section, given in endpoints.configured.items()]
    tables.append(("loader", pipeline.loader))
    if pipeline.sink is not None:
        tables.append(("sink", SinkTable.model_validate(pipeline.sink)))
    if pipeline.trains:
        tables.append(("evaluation", parts.judging.evaluation.settings))
    if (labels := pipeline.late_labels) is not None:
        tables.append(("labels", labels))
        in_effect = {"source": in_effect[ROWS], SECTION: in_effect[LABELS]}
    for stage in parts.scrub.stages:
        if not (told := _told_keys(stage)):
            continue
        for key, value in stage.settings.model_dump(mode="json", include=told).items():
            yield f"[scrub.{stage.name}] {key}", Tolerated(json.dumps(value, sort_keys=True))
    for section, settings in tables:
        values = _values_of(section, in_effect, grouped=labels is not None)
        compared = compared_settings(settings, values, learns=parts.keeps_state)
        for key, (act, value) in compared.items():
            text = json.dumps(value, sort_keys=True)
            if act != "refuse":
                text = Tolerated(text)
            elif change_of(type(settings), key) is Change.MEANING:
                text = _mendable(parts)(text)
            yield f"[{section}] {key}", text


def _stage_tables(parts: Parts) -> dict[str, Any]:
    """Return the tables of [scrub] without keys whose change is only logged; of a source that a
    stage reads only the columns, as its other keys are compared one by one, and may be secret."""
    tables: dict[str, Any] = dict(parts.pipeline.scrub)
    for stage in parts.scrub.stages:
        told = _told_keys(stage)
        tables[stage.name] = {k: v for k, v in tables[stage.name].items() if k not in told}
    for name in parts.scrub.sides:
        schema = tables[name]["source"].get("schema", {})
        tables[name] = {**tables[name], "source": {"schema": schema}}
    return tables


def _told_keys(stage: Stage) -> set[str]:
    """Return the keys of a stage whose change is only logged; none of a user's that keeps no
    settings."""
    kind = type(stage.settings)
    if not issubclass(kind, BaseModel):
        return set()
    return {key for key in kind.model_fields if change_of(kind, key) is Change.WARNED}


def _values_of(section: str, in_effect: Mapping[str, Any], *, grouped: bool) -> Mapping[str, Any]:
    """Return the values that are in effect for a section's settings.

    Args:
        in_effect: of the source; of each section if it is `grouped`.
    """
    if grouped or section.startswith(MIXED):
        values: Mapping[str, Any] = in_effect.get(section.removeprefix(MIXED), {})
        return values
    return in_effect if section.startswith("source") else {}


def _files(parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the digests of files that stages read, as the pipeline file holds only their names,
    and the columns from there. Codes mean nothing with another vocabulary."""
    for stage in parts.scrub.stages:
        digest = stage.digest()
        if digest is None:
            continue
        before, after = stage.bound or ({}, {})
        columns = type_names({c: dtype for c, dtype in after.items() if c not in before})
        text = json.dumps({"digest": digest, "columns": columns}, sort_keys=True)
        yield FILE + stage.name, text if stage.vocabulary_sizes() else _mendable(parts)(text)


def _learned(parts: Parts) -> Iterator[tuple[str, str]]:
    """Yield the model and the wrappers of the learner, and how it learns, which may change; the
    rest is in the learner's own state."""
    pipeline, model = parts.pipeline, parts.model
    learned = {k: v for k, v in (pipeline.model or {}).items() if k != "threshold"}
    yield "model", json.dumps(learned, sort_keys=True)
    for key, value in model.training.model_dump(mode="json").items():
        if change_of(type(model.training), key) is not Change.FREE:
            yield f"[train] {key}", Tolerated(json.dumps(value, sort_keys=True))
    sampled = "sampling" in (pipeline.train or {})
    features = model.features
    columns = {
        "numeric": features.numeric,
        "categories": tuple(features.categories),
        "nested": features.nested,
        "inputs": features.inputs,
    }
    yield "features", json.dumps({kind: named for kind, named in columns.items() if named})
    yield "[train] sampling", json.dumps("given" if sampled else "none")
    yield "[train] forget_on", json.dumps(model.forget_on)
    if not model.common_settings.given_classes and features.classes:
        yield "classes", json.dumps(features.classes)


def _mendable(parts: Parts) -> type[str]:
    """Return the type of a text that says how records become rows."""
    return Tolerated if parts.endpoints.replay else str


__all__ = ["identity_of"]
