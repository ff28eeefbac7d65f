"""Adopts an ONNX file that was made elsewhere: looks at it, frees what it need not fix, and matches
its inputs with the columns of a pipeline."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.assembly.parts import Parts
from engine.types import UserError

if TYPE_CHECKING:
    from models.serving.adopt.adoption import Adoption as Adoption
    from models.serving.adopt.adoption import Proof as Proof

Shapes = Mapping[str, tuple[int | str | None, ...]]


def adopt(path: Path, target: Path | None, shapes: Shapes) -> Adoption:
    """Look at a file, and prepare a changed one to be published beside it, or as `target`, if that
    is of use.

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
    target = target or path.with_name(f"{path.stem}.adopted.onnx")
    if target.resolve() == path.resolve():
        raise UserError(f"--to '{target}' is the file itself: expected another one.")
    return adopting.adopt(path, target, shapes, limits_of(InferSettings(model=str(path))))


def table(adoption: Adoption, parts: Parts | None) -> str:
    """Return the [infer] table that serves a file, with the columns of a pipeline.

    Raises: UserError if a graph's inputs cannot be matched with them.
    """
    from models.serving.adopt.infer_table import infer_table
    from models.serving.inputs import GraphInputs

    if parts is None:
        return infer_table(adoption, {})
    inputs = GraphInputs(adoption.served.inputs, {}, parts.scrub.schema, f"'{adoption.path}'")
    return infer_table(adoption, inputs.tables)


def require_served(table: str, adoption: Adoption, parts: Parts | None) -> None:
    """Try the file with its table, as `run` tries it; without a pipeline, with a column for each
    input, unless an input has a size that only columns can tell.

    Raises: UserError if `run` would refuse it.
    """
    from models.serving.adopt.infer_table import columns_of
    from models.serving.graph_predictor import open_graph
    from models.serving.settings import InferSettings, validated

    inputs = adoption.served.inputs
    if parts is None and any(not isinstance(size, int) for value in inputs for size in value.row):
        return
    schema = columns_of(inputs) if parts is None else parts.scrub.schema
    settings = InferSettings(**{**tomllib.loads(table)["infer"], "model": str(adoption.file)})
    try:
        open_graph(settings, validated).bind(schema)
    except UserError as error:  # speaks of the name that it is to have
        raise UserError(str(error).replace(str(adoption.file), str(adoption.path))) from None


__all__ = ["adopt", "require_served", "table"]
