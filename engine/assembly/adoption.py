"""Adopts an ONNX file that was made elsewhere: looks at it, frees what it need not fix, and matches
its inputs with the columns of a pipeline."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.assembly.parts import Parts
from engine.config import Pipeline, key_location
from engine.types import UserError

if TYPE_CHECKING:
    from models.serving.adopt.adoption import Adoption as Adoption
    from models.serving.adopt.adoption import Proof as Proof
    from models.serving.adopt.infer_table import InferTable as InferTable

Shapes = Mapping[str, tuple[int | str | None, ...]]


def given_of(pipeline: Pipeline | None, path: Path, target: Path | None) -> dict[str, Any]:
    """Return what a pipeline's [infer] says of the file, without ``model``; {} if it has none.

    Raises: UserError for a wrong key or value, or if it serves another file.
    """
    from models.serving.settings import InferSettings

    if pipeline is None or pipeline.infer is None:
        return {}
    given = dict(pipeline.infer)
    model = given.pop("model", None)
    pipeline.settings(InferSettings, {**given, "model": str(path)}, "infer")
    if model is None:
        return given
    names = [name.resolve() for name in (path, target or _beside(path))]
    if Path(str(model)).resolve() not in names:
        raise UserError(
            f"{key_location(pipeline.file, 'infer', 'model')} has model = '{model}', which is "
            f"another: take model out, or set it to '{path}'."
        )
    return given


def adopt(path: Path, target: Path | None, shapes: Shapes, given: Mapping[str, Any]) -> Adoption:
    """Look at a file, and prepare a changed one to be published beside it, or as `target`, if that
    is of use.

    Args:
        given: see `given_of`.

    Raises: UserError for a file that is not there, or that headrace wrote.
    """
    from models.export import model_files
    from models.serving.adopt import adoption as adopting
    from models.serving.base import require_file
    from models.serving.inspection import limits_of
    from models.serving.settings import InferSettings

    require_file(path, f"'{path}' is no file.")
    if model_files.is_sealed(path):
        raise UserError(
            f"'{path}' was written by headrace: it serves as it is, by [infer] model = '{path}'."
        )
    target = target or _beside(path)
    if target.resolve() == path.resolve():
        raise UserError(f"--to '{target}' is the file itself: expected another one.")
    limits = {key: given[key] for key in ("max_seconds", "max_memory") if key in given}
    settings = InferSettings(**{**limits, "model": str(path)})
    return adopting.adopt(path, target, shapes, limits_of(settings))


def table(adoption: Adoption, parts: Parts | None, given: Mapping[str, Any]) -> InferTable:
    """Return the [infer] table that serves a file, with the columns of a pipeline.

    Args:
        given: see `given_of`; it stays as it is.

    Raises: UserError if a graph's inputs cannot be matched with them.
    """
    from models.serving.adopt.infer_table import infer_table
    from models.serving.graph_predictor import input_settings
    from models.serving.inputs import GraphInputs
    from models.serving.settings import InferSettings

    if parts is None:
        return infer_table(adoption, {})
    of_file = parts.pipeline.settings
    settings = of_file(InferSettings, {**given, "model": str(adoption.path)}, "infer")
    said, where = input_settings(settings, of_file), f"'{adoption.source}'"
    inputs = GraphInputs(adoption.served.inputs, said, parts.scrub.schema, where)
    return infer_table(adoption, inputs.tables, given)


def require_served(
    table: InferTable, adoption: Adoption, serve: Callable[[Mapping[str, Any]], None] | None
) -> None:
    """Try the file with its table, as `run` tries it; without a pipeline, with a column for each
    input, unless an input has a size that only columns can tell.

    Args:
        serve: tries the pipeline with an [infer]; None without one.

    Raises: UserError if `run` would refuse it.
    """
    from models.serving.adopt.infer_table import columns_of
    from models.serving.graph_predictor import open_graph
    from models.serving.settings import InferSettings, validated

    inputs = adoption.served.inputs
    if serve is None and any(not isinstance(size, int) for value in inputs for size in value.row):
        return
    infer = {**tomllib.loads(str(table))["infer"], "model": str(adoption.file)}
    try:
        if serve is None:
            open_graph(InferSettings(**infer), validated).bind(columns_of(inputs))
        else:
            serve(infer)
    except UserError as error:  # a changed file is not there yet
        raise UserError(str(error).replace(str(adoption.file), str(adoption.source))) from None


def _beside(path: Path) -> Path:
    """Return where a changed file goes unless --to says it."""
    return path.with_name(f"{path.stem}.adopted.onnx")


__all__ = ["adopt", "given_of", "require_served", "table"]
