"""From the paths of a pipeline file to files and their format."""

from __future__ import annotations

import glob
import importlib.resources
import re
from collections.abc import Iterable
from pathlib import Path

from connectors.files.text import COMPRESSIONS
from engine.types import UserError, nearest

EXTENSIONS = {
    ".csv": "csv", ".tsv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet",
    ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow",
}  # fmt: skip
RESOURCE = re.compile(r"([A-Za-z_][\w.]*):(\w.*)")


def find(paths: Iterable[str]) -> dict[str, Path]:
    """Partition -> file: in the order given, those of a glob sorted by name.

    Raises: UserError for a path that leads to no file.
    """
    found: dict[str, Path] = {}
    for path in paths:
        resource = RESOURCE.fullmatch(path)
        if Path(path).is_file():
            found[path] = Path(path)
        elif resource:
            found[path] = _resource(path, resource[1], resource[2])
        elif glob.has_magic(path):
            found |= _matches(path)
        else:
            near = nearest(Path(path).name, _names(Path(path).parent))
            raise UserError(f"[source] path '{path}' is no file.{near}")
    return found


def kind(files: dict[str, Path]) -> str:
    """The one format of these files, by their extensions.

    Raises: UserError where one says nothing or they say different things.
    """
    kinds = {name: _kind(path) for name, path in files.items()}
    first = next(iter(kinds))
    for name, found in kinds.items():
        if found is None:
            raise UserError(
                f"[source] path '{name}' has no extension that says what it holds: set [source] "
                "format to csv, ndjson, parquet or arrow."
            )
        if found != kinds[first]:
            raise UserError(
                f"[source] path leads to files of two formats, '{first}' ({kinds[first]}) and "
                f"'{name}' ({found}): choose one."
            )
    return str(kinds[first])


def _kind(path: Path) -> str | None:
    plain = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return EXTENSIONS.get(plain.suffix.lower())


def _matches(pattern: str) -> dict[str, Path]:
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute
    found = {name: Path(name) for name in names if Path(name).is_file()}
    if not found:
        raise UserError(f"[source] path '{pattern}' matches no file.")
    return found


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _resource(path: str, package: str, inside: str) -> Path:
    try:
        file = importlib.resources.files(package).joinpath(inside)
    except ModuleNotFoundError:
        raise UserError(
            f"[source] path '{path}' needs the package '{package}', which is not installed."
        ) from None
    if not isinstance(file, Path) or not file.is_file():
        raise UserError(f"[source] path '{path}' is no file: package '{package}' has none there.")
    return file


__all__ = ["find", "kind"]
