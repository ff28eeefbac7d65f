"""``headrace adopt``: what an ONNX file holds, whether its batch size can be freed, and the [infer]
table that serves it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from engine.assembly import adoption as adopting
from engine.commands.output import console, put
from engine.config import Pipeline
from engine.errors import HeadraceError, UserError
from engine.run import Run
from engine.system import atomic
from engine.types.plural import counted

if TYPE_CHECKING:
    from engine.assembly.adoption import Adoption, InferTable, Proof
    from engine.assembly.parts import Parts

MAX_OPERATORS = 12
"""The most frequent operators that are shown."""


def adopt(
    file: Path,
    *,
    pipeline: str | None = None,
    overrides: Sequence[str] = (),
    write: bool = False,
    to: Path | None = None,
    shapes: Sequence[str] = (),
) -> None:
    """Print what the file holds and the [infer] table; write the table into the pipeline file.
    What [infer] of the pipeline says of the file is kept. Nothing is written if any is refused.

    Raises: UserError for a file that `run` would refuse, or a pipeline that serves another one;
        HeadraceError if it cannot be written.
    """
    loaded = None if pipeline is None else Pipeline.load(pipeline, overrides)
    if write:
        _require_writable(pipeline)
    given = adopting.given_of(loaded, file, to)
    parts = None if loaded is None else Run(loaded.model_copy(update={"infer": None})).parts
    _ = None if parts is None else parts.scrub.schema
    adoption = adopting.adopt(file, to, dict(map(_shape, shapes)), given)
    try:
        table = _table(file, adoption, parts, given, write=write)
        if pipeline is not None and write:
            _write(Path(pipeline), table, adoption, given)
        else:
            _say_findings(adoption)
            _published(adoption)
            put(f"\n{table}")
    finally:
        adoption.discard()


def _write(path: Path, table: InferTable, adoption: Adoption, given: Mapping[str, Any]) -> None:
    """Write the table into the pipeline file, and give the changed file its name; or neither."""
    text = path.read_text(encoding="utf-8-sig")
    for key, own in tomllib.loads(text).get("infer", {}).items():
        if key != "model" and given.get(key) != own:
            raise UserError(
                f"{path} has another {key} in [infer] than is tried: --set, the environment or its "
                f"base changes it. Put the right one into {path}, or leave out --write."
            )
    changed = table.written_into(text, str(path))
    _say_findings(adoption)
    try:
        with atomic.written(path) as temporary:
            atomic.stage(temporary, [changed.encode()])
            _published(adoption)
    except OSError as error:
        raise HeadraceError(
            f"'{path}' cannot be written: {error.strerror or error}; it stays as it was."
        ) from error
    console().print(f"Wrote [infer] into {path}.", highlight=False, markup=False)


def _table(
    file: Path,
    adoption: Adoption,
    parts: Parts | None,
    given: Mapping[str, Any],
    *,
    write: bool,
) -> InferTable:
    """Print what the file holds, and return the [infer] table, tried as `run` tries it; one that is
    refused is printed too, to be mended."""
    if adoption.graph.operators:
        console().print(_facts(file, adoption))
    if adoption.graph.refusal:
        raise UserError(f"'{file}' cannot be served: {adoption.graph.refusal}.")
    table = adopting.table(adoption, parts, given)
    try:
        serve = None if parts is None else partial(_require_served, parts.pipeline)
        adopting.require_served(table, adoption, serve)
    except UserError:
        if not write:
            put(f"\n{table}")
        raise
    return table


def _require_served(pipeline: Pipeline, infer: Mapping[str, Any]) -> None:
    """Build all of a pipeline that serves by this [infer], the sink too, as `run` does. Raises:
    UserError"""
    Run(pipeline.model_copy(update={"infer": infer, "train": None})).assemble()


def _say_findings(adoption: Adoption) -> None:
    for sentence in _findings(adoption):
        console().print(Text(sentence), soft_wrap=True)


def _published(adoption: Adoption) -> Adoption:
    """Give the changed file, if there is one, its name, and say so. Raises: HeadraceError if it
    cannot be written."""
    try:
        published = adoption.publish()
    except OSError as error:
        raise HeadraceError(
            f"'{adoption.path}' cannot be written: {error.strerror or error}; it stays as it was."
        ) from error
    if published is not adoption:
        console().print(Text(f"Wrote {adoption.path}."), soft_wrap=True)
    return published


def _require_writable(pipeline: str | None) -> None:
    """Check that there is a pipeline file that serves."""
    if pipeline is None:
        raise UserError("--write needs --pipeline, the file to write [infer] into.")
    path = Path(pipeline)
    table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    if "train" in table:
        raise UserError(
            f"{path} has a [train] table, and a pipeline trains or serves: name another."
        )
    atomic.require_file(path, "--pipeline")


def _shape(text: str) -> tuple[str, tuple[int | str | None, ...]]:
    """Parse ``NAME=n,3,h,w``."""
    name, equals, sizes = text.partition("=")
    parts = [part.strip() for part in sizes.split(",")]
    whole = [int(part) if part.isdecimal() else part for part in parts]
    if not equals or not name or not all(whole):
        raise UserError(
            f"Expected --shape NAME=SIZE,SIZE,..., such as image=n,3,h,w, got '{text}'."
        )
    return name, tuple(whole)


def _facts(file: Path, adoption: Adoption) -> Table:
    graph = adoption.graph
    table = Table(title=str(file), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    frequent = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} {n:,}" for name, n in frequent[:MAX_OPERATORS]]
    more = len(frequent) - len(shown)
    rows = {
        "size": f"{adoption.size:,} bytes",
        "beside it": ", ".join(graph.external),
        "producer": graph.producer,
        "opset": ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items()),
        "inputs": "\n".join(map(str, graph.inputs)),
        "outputs": "\n".join(map(str, graph.outputs)),
        "operators": ", ".join([*shown, *([f"{more} more kinds"] if more else [])]),
        "not here": ", ".join(graph.unknown),
        "batch": "any" if adoption.fixed is None else f"{counted(adoption.fixed, 'row')} at a time",
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _findings(adoption: Adoption) -> Iterator[str]:
    """Yield what was changed, and whether that is proved."""
    if adoption.proof is None:
        return
    yield f"Changed: {'; '.join(adoption.changes)}."
    if adoption.proof.failure:
        yield (
            f"Not proved equal: {adoption.proof.failure}. The file stays as it is; 'headrace "
            "check' of its pipeline says whether it can be served."
        )
        if adoption.fixed is not None:
            yield f"Its batches are cut into pieces of {counted(adoption.fixed, 'row')}."
        return
    yield f"Proved equal: {_proved(adoption.proof)}."


def _proved(proof: Proof) -> str:
    beside = "the original's answers to each" if proof.compared else "its own answers to each alone"
    return (
        f"{counted(proof.rows, 'row')} in batches of 1, 2, 3 and {proof.rows} beside {beside}, "
        f"largest difference {proof.apart:.2g} of the largest answer"
    )


__all__ = ["adopt"]
