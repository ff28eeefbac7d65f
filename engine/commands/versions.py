"""``headrace versions``: the versions of a model, and which one serves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from engine.config import Pipeline
from engine.errors import HeadraceError, UserError
from engine.versions.pointers import Pointer
from engine.versions.registry import RegistryJob, job_of, require_registry
from engine.versions.store import Versions
from engine.versions.version import TornVersion, Version

KIB = 1_024


def versions_of(what: str, overrides: Sequence[str] = ()) -> Versions:
    """Return the versions of a folder, or those that a pipeline publishes or serves.

    Raises: UserError if it has none.
    """
    if (versions := Versions.named(Path(what))) is not None:
        return versions
    pipeline = Pipeline.load(what, overrides)
    served = None if pipeline.infer is None else Path(str(pipeline.infer.get("model")))
    if served is not None:
        versions = Versions.named(served)
        if versions is None:
            raise UserError(
                f"[infer] model in {what} is '{served}', which is no folder of versions: it is "
                "served until the engine starts again."
            )
        return versions
    if pipeline.export is None:
        raise UserError(f"{what} has no [export] and no [infer], so its model has no versions.")
    return Versions(pipeline.versions_path)


def registry_of(what: str, overrides: Sequence[str] = ()) -> RegistryJob | None:
    """Return what registers the versions that a pipeline publishes; None for a folder, or without
    [export] registry. Raises: UserError if it cannot be reached."""
    if Versions.named(Path(what)) is not None:
        return None
    job = job_of(Pipeline.load(what, overrides))
    if job is not None:
        require_registry(what)
    return job


def change(
    versions: Versions,
    *,
    promote: int | str | None = None,
    rollback: bool = False,
    shadow: int | str | None = None,
) -> str:
    """Move a pointer if that is asked for; return what was done.

    Args:
        promote: the number of the version to serve, or "newest"; None leaves the pointer.
        rollback: whether the one before is to serve.
        shadow: the number of the version to answer beside it, or "none"; None leaves it.

    Raises: UserError for a version that is not there; HeadraceError if it cannot be written.
    """
    try:
        if shadow is not None:
            return _shadowed(versions, shadow)
        if rollback:
            return _serves(versions, versions.rollback())
        if promote is not None:
            number = promote if isinstance(promote, int) else None
            return _serves(versions, versions.promote(number))
    except OSError as error:
        raise HeadraceError(
            f"A pointer in {versions.folder} cannot be moved: {error.strerror or error}."
        ) from error
    return ""


def _serves(versions: Versions, version: Version) -> str:
    pointer = versions.pointer.read_or_none()
    held = " and is held: newer ones do not serve" if pointer is not None and pointer.held else ""
    return f"Version {version.number} serves{held}."


def _shadowed(versions: Versions, number: int | str) -> str:
    if isinstance(number, int):
        versions.put_into_shadow(number)
        return (
            f"Version {number} is in the shadow of engines whose [infer] shadow is above 0: it "
            "answers that share of the rows, unseen."
        )
    versions.shadow.delete()
    return "No version is in the shadow."


def listed(versions: Versions) -> Table:
    """Return a table of the versions, the newest first.

    Raises: UserError if there are none.
    """
    numbers = versions.numbers()
    if not numbers:
        raise UserError(f"{versions.folder} has no version of a model yet.")
    pointer, shadow = versions.pointer.read_or_none(), _shadow(versions)
    table = Table(title=str(versions.folder), title_justify="left")
    for heading in ("version", "", "rows say", "published", "learned", "data until", "model"):
        right = heading in ("version", "learned", "model")
        table.add_column(heading, justify="right" if right else "left")
    for number in reversed(numbers):
        version = versions.examined(number)
        state = _state(version, number, pointer, shadow)
        table.add_row(str(number), state, *_details(version))
    if pointer is not None and pointer.number not in numbers:
        table.add_row(str(pointer.number), "serves", Text("not there", style="red"))
    if isinstance(shadow, TornVersion):
        table.add_row("", "in the shadow", Text(str(shadow), style="red"))
    elif shadow is not None and shadow.number not in numbers:
        table.add_row(str(shadow.number), "in the shadow", Text("not there", style="red"))
    return table


def _state(
    version: Version | TornVersion,
    number: int,
    pointer: Pointer | None,
    shadow: Pointer | TornVersion | None,
) -> str:
    states = []
    if pointer is not None and number == pointer.number:
        states += ["serves", "held"] if pointer.held else ["serves"]
    if isinstance(shadow, Pointer) and number == shadow.number:
        states.append("in the shadow")
    if isinstance(version, TornVersion):
        states.append("damaged")
    elif version.kept_back:
        states.append("kept back")
    return ", ".join(states)


def _details(version: Version | TornVersion) -> list[str | Text]:
    if isinstance(version, TornVersion):
        return [Text(str(version), style="red")]
    return [
        version.model_version,
        version.created.replace("+00:00", "Z"),
        f"{version.rows:,}",
        _until(version),
        f"{version.precision}, {version.size / KIB:,.0f} kB",
    ]


def _until(version: Version) -> str:
    if version.data_time is None:
        return ""
    try:
        return datetime.fromtimestamp(version.data_time, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # a wrong clock: no year from 1 to 9999
        return f"{version.data_time:g} s after 1970"


def _shadow(versions: Versions) -> Pointer | TornVersion | None:
    """Return the version in the shadow, None if there is none; or what is wrong with its
    pointer."""
    try:
        return versions.shadow.read()
    except TornVersion as error:
        return error


__all__ = ["change", "listed", "registry_of", "versions_of"]
