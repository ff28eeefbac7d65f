"""Builds a component from its table: class, settings, instance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from engine.config import Pipeline, load_class, suggested_kind
from engine.scrub import STAGES
from engine.scrub.side_source import SideSource, SideStage
from engine.types import Stage, UserError
from engine.user_code import calls
from engine.user_code.contract_checks import require_contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """A section of the pipeline file, parsed."""

    kind: str
    settings: BaseModel


def configure(
    pipeline: Pipeline,
    section: str,
    table: Mapping[str, Any],
    known: Mapping[str, str],
    contract: type,
    *,
    provenance: Mapping[str, str] | None = None,
) -> tuple[Configured, Any]:
    """Build a source or a sink.

    Args:
        known: kind -> import string.
        contract: the base class it must inherit.
        provenance: headers for a sink that writes headers.

    Raises: UserError for an unknown kind or a wrong setting.
    """
    table = dict(table)
    kind = table.pop("kind", None)
    if kind is None:
        raise UserError(
            f"[{section}] in {pipeline.file} needs the key 'kind', which is not there."
            f"{suggested_kind('', known, section)}"
        )
    component_class = load_class(kind, known, section)
    require_contract(component_class, contract, section)
    if provenance and "provenance" in component_class.Settings.model_fields:
        table["provenance"] = {**provenance, **table.get("provenance", {})}
    settings = pipeline.settings(component_class.Settings, table, section)
    component = calls.construct(section, component_class, contract, settings)
    return Configured(kind=kind, settings=settings), component


def make_stages(
    pipeline: Pipeline,
    exported: Collection[str],
    side_source: Callable[[str, SideStage], SideSource],
) -> list[Stage]:
    """Build the stages of [scrub] in order, except those a model file contains.

    Args:
        side_source: returns what a stage reads beside the stream, by the table's section.
    """
    tables = pipeline.scrub.items()
    stages = [_stage(pipeline, name, table) for name, table in tables if name not in exported]
    for stage in stages:
        if isinstance(stage, SideStage) and stage.side_table is not None:
            stage.side = side_source(f"scrub.{stage.name}.source", stage)
    return stages


def _stage(pipeline: Pipeline, name: str, table: Mapping[str, Any]) -> Stage:
    own, section = dict(table), f"scrub.{name}"
    stage_class = load_class(own.pop("kind", name), STAGES, section, pipeline.file)
    require_contract(stage_class, Stage, section)
    settings = pipeline.settings(stage_class.Settings, own, section)
    stage: Stage = calls.construct(section, stage_class, Stage, name, settings)
    return stage


__all__ = ["Configured", "configure", "make_stages"]
