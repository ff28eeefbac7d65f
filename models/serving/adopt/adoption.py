"""Adopts an ONNX file that was made elsewhere: frees a fixed batch size and sizes that it need not
fix, takes out what no column can hold, and proves that the answers stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import UserError, nearest
from engine.system import atomic, limited_process
from engine.system.limited_process import Limits, ProcessFailed
from models.serving.adopt.graph_changes import Shapes
from models.serving.adopt.rework import Proof, Rework
from models.serving.inspection import GraphFile, inspect
from models.serving.signature import Size

ROWS = "n"
"""The name of a freed batch size."""
UNTRIED = ".untried"
"""Ends the stem of a changed file until it is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What was found out about a file.

    Attributes:
        source: the file.
        graph: what is in it.
        size: bytes of the file.
        fixed: the rows that it takes at a time; None for any.
        path: the file to serve.
        file: where that file is: beside `path` until `publish`.
        served: what is in that file.
        changes: what was changed, in words.
        proof: that the changed file is equal; None if nothing was changed.
    """

    source: Path
    graph: GraphFile
    size: int
    fixed: int | None
    path: Path
    file: Path
    served: GraphFile
    changes: tuple[str, ...] = ()
    proof: Proof | None = None

    def publish(self) -> Adoption:
        """Rename the changed file, if there is one, to the name it serves by. Raises: OSError."""
        if self.file == self.path:
            return self
        atomic.publish({self.file: self.path.resolve()})
        return replace(self, file=self.path)

    def discard(self) -> None:
        """Remove the changed file unless it is published; what had its name before stays."""
        if self.file != self.path:
            atomic.discard(self.file)


def adopt(path: Path, target: Path, shapes: Shapes, limits: Limits) -> Adoption:
    """Look at a file, and write a changed one if that is of use and proved equal: beside `target`,
    where `Adoption.publish` renames it and `Adoption.discard` removes it.

    Args:
        target: where the changed file goes; beside the file itself if it has external data.
        shapes: input -> the shape that it is to have; names are free sizes.

    Raises: UserError for an input that there is not, or a shape of other dimensions.
    """
    graph = inspect(path, limits)
    sizes = [v.shape[0] for v in graph.inputs if v.shape]
    found = Adoption(
        source=path,
        graph=graph,
        size=path.stat().st_size,
        fixed=next((size for size in sizes if isinstance(size, int)), None),
        path=path,
        file=path,
        served=graph,
    )
    if graph.refusal:
        return found
    wanted = _wanted(graph, shapes)
    changes = (
        *_reshaped(graph, wanted),
        *(f"output '{name}' is an array" for name in graph.mapped),
    )
    if not changes:
        return found
    if graph.external and target.resolve().parent != path.resolve().parent:
        raise UserError(
            f"'{path}' keeps weights in files beside it: expected --to in the same folder, got "
            f"'{target}'."
        )
    atomic.require_file(target, "--to")
    place = target.resolve()
    beside = place.with_name(f"{place.stem}{UNTRIED}{place.suffix}")
    job = Rework(
        source=str(path),
        target=str(beside),
        shapes=wanted,
        outputs=graph.mapped,
        labels=graph.labels,
    )
    try:
        proof: Proof = limited_process.call("models.serving.adopt.rework:rework", job, limits)
    except ProcessFailed as error:
        proof = Proof(failure=f"the changed file {error}")
    found = replace(found, changes=changes, proof=proof)
    if proof.failure:
        return found
    found = replace(found, path=target, file=beside)
    try:
        return replace(found, served=inspect(beside, limits))
    except BaseException:
        found.discard()
        raise


def _wanted(graph: GraphFile, shapes: Shapes) -> dict[str, tuple[Size, ...]]:
    """Return the new shape of each input that gets one."""
    inputs = {value.name: value for value in graph.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UserError(f"--shape names '{name}', which is no input.{nearest(name, inputs)}")
        old = inputs[name].shape
        if old is not None and len(old) != len(shape):
            raise UserError(f"--shape {name}: expected {len(old)} sizes, got {len(shape)}.")
    freed = {
        value.name: (ROWS, *value.shape[1:])
        for value in graph.inputs
        if value.shape and isinstance(value.shape[0], int)
    }
    return {**freed, **shapes}


def _reshaped(graph: GraphFile, wanted: Shapes) -> Iterator[str]:
    for value in graph.inputs:
        new = wanted.get(value.name)
        if new is not None and new != value.shape:
            yield f"input {value} is {' x '.join(map(str, new))}"


__all__ = ["Adoption", "Proof", "adopt"]
