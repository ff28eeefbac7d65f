"""Finds the files and the format for the paths of a pipeline file."""

from __future__ import annotations

import fnmatch
import glob
import importlib.resources
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from connectors.files.readers.text import compression, readable
from connectors.formats.registry import EXTENSIONS, FILES, spec_of
from engine.errors import MissingFile, first_line
from engine.types import UserError
from engine.types.plural import counted

HIDDEN_PREFIXES = (".", "_")
"""The first characters of names that are not data: hidden files, and those of Spark, Hive and
others."""
PACKAGE_RESOURCE = re.compile(r"([A-Za-z_][\w.]*):(\w.*)")

log = logging.getLogger("headrace.files")


def find_files(paths: Iterable[str], format: str | None = None) -> dict[str, Path]:
    """Return partition -> file: in the given order; those of a glob or below a folder sorted by
    name.

    A folder stands for all files below it but, where the format is given, those with an extension
    of none of its. Names that begin with a dot or an underscore (``_SUCCESS``, ``_metadata``,
    ``.part.crc``) are metadata of other programs: they are skipped there, and in globs, unless the
    pattern names them. A part of a pattern that is the name of a folder stands for it, whatever
    brackets are in it. A file to which several paths or links lead is returned once.

    Raises: UserError for a path that leads to no file.
    """
    files: dict[str, Path] = {}
    for path in paths:
        resource = PACKAGE_RESOURCE.fullmatch(path)
        try:
            is_file, is_folder = Path(path).is_file(), Path(path).is_dir()
        except OSError as error:  # a name that is too long, links in a circle
            raise UserError(
                f"[source] path {path[:100]!r} cannot be used: {error.strerror}; choose another."
            ) from None
        if is_file:
            files[_shown(path)] = Path(path)
        elif is_folder:
            files |= _below(path, format)
        elif resource:
            files[path] = _resource(path, resource[1], resource[2])
        elif glob.has_magic(path):
            files |= _matches(path)
        else:
            raise _no_file(path)
    return _once(files)


def would_match(paths: Iterable[str], file: Path, format: str | None = None) -> bool:
    """Return whether `find_files` would find a file at this path once it exists, in any
    spelling."""
    spelt = _spellings(file)
    for path in paths:
        if Path(path).is_dir():
            matches = any(_is_data(below) for below in _relative_parts(spelt, path)) and _fits(
                file, format
            )
        elif glob.has_magic(path) and not Path(path).is_file():
            matches = _is_match(path, file, spelt)
        else:
            matches = file.resolve() == Path(path).resolve()
        if matches:
            return True
    return False


def common_format(files: dict[str, Path]) -> str:
    """Return the common format of these files, by their extensions.

    Raises: UserError if an extension is unknown, or they contradict each other.
    """
    kinds = {name: _kind(path) for name, path in files.items()}
    first = next(iter(kinds))
    for (name, path), format in zip(files.items(), kinds.values(), strict=True):
        if format is None:
            raise UserError(
                f"[source] path '{name}' {_unclear(path)}: set [source] format to "
                f"{', '.join(FILES)}."
            )
        if format != kinds[first]:
            raise UserError(
                f"[source] path leads to files of two formats, '{first}' ({kinds[first]}) and "
                f"'{name}' ({format}): choose one."
            )
    return str(kinds[first])


def _unclear(path: Path) -> str:
    """Return why the extension does not tell the format."""
    if _extension(path) == ".json":
        return "may hold one object (json) or one a line (ndjson), which its name does not tell"
    return "has no extension that says what it holds"


def _shown(path: str | Path) -> str:
    """Return the name of a file's partition: its path as found, in its shortest spelling."""
    return readable(str(path if isinstance(path, Path) else Path(path)))  # parsing is slow


def _once(files: dict[str, Path]) -> dict[str, Path]:
    """Drop files that are another one's second name, and those that have gone since."""
    first: dict[tuple[int, int], str] = {}
    again: list[str] = []
    for name, path in files.items():
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if first.setdefault((stat.st_dev, stat.st_ino), name) != name:
            again.append(name)
    if again:
        log.warning(
            "%s to a file that another leads to, '%s' for one: each file is read once.",
            counted(len(again), "path leads", "paths lead"),
            again[0],
        )
    return {name: files[name] for name in first.values()}


def _no_file(path: str) -> UserError:
    place = Path(path)
    if place.exists():
        description = "a named pipe" if place.is_fifo() else "a device or socket"
        return UserError(
            f"[source] path '{readable(path)}' is {description}, and no file: expected one that "
            f"can be "
            'read again; write it to a file, or pipe it to the command, with path = "-".'
        )
    if place.is_symlink():
        return UserError(
            f"[source] path '{readable(path)}' is a link to '{readable(str(place.readlink()))}', "
            "which does not exist: put the file there, or correct the link."
        )
    return MissingFile(f"[source] path '{readable(path)}' is no file.", place)


def _kind(path: Path) -> str | None:
    return EXTENSIONS.get(_extension(path))


def _extension(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in EXTENSIONS or not compression(path):
        return suffix
    return path.with_suffix("").suffix.lower()


def _below(folder: str, format: str | None) -> dict[str, Path]:
    files = {_shown(p): p for p in sorted(map(Path, _listed(folder)), key=os.fsencode)}
    fitting = {name: path for name, path in files.items() if _fits(path, format)}
    if not fitting:
        of_format = "" if format is None else f" of format '{format}'"
        raise UserError(
            f"[source] path '{readable(folder)}' is a folder without files{of_format}; "
            "names that begin with a dot or an underscore do not count."
        )
    if format is None:
        return _told_apart(fitting, folder)
    left = len(files) - len(fitting)
    if left:
        log.warning(
            "Below %s, %s left out: no extension of format '%s'.",
            readable(folder),
            counted(left, f"of {counted(len(files), 'file')} is", f"of {len(files):,} files are"),
            format,
        )
    return fitting


def _listed(folder: str) -> Iterator[str]:
    """Yield the files below a folder, but hidden ones and those behind links to folders. The
    listing says what is a file: there may be too many to ask for each."""
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if entry.name[0] not in HIDDEN_PREFIXES]
    except OSError as error:
        _unlisted(error)
    for entry in entries:
        if entry.is_symlink():
            if Path(entry.path).is_file():
                yield entry.path
        elif entry.is_dir(follow_symlinks=False):
            yield from _listed(entry.path)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path


def _unlisted(error: OSError) -> NoReturn:
    raise UserError(
        f"[source] path leads to the folder '{readable(error.filename)}', which cannot be listed: "
        f"{error.strerror}; grant it, or name the files by a pattern."
    ) from None


def _told_apart(files: dict[str, Path], folder: str) -> dict[str, Path]:
    """Keep the files whose extensions show a format, if any do: a README may lie beside data."""
    known = {name: path for name, path in files.items() if _kind(path) is not None}
    aside = [name for name in files if name not in known]
    if not known or not aside:
        return files
    log.warning(
        "Below %s, %s left out, '%s' for one: no extension that says a format; to read such, name "
        "them by a pattern ('%s') and set [source] format.",
        readable(folder),
        counted(len(aside), f"of {counted(len(files), 'file')} is", f"of {len(files):,} files are"),
        aside[0],
        _pattern(files[aside[0]]),
    )
    return known


def _pattern(file: Path) -> str:
    """Return a pattern for the files of a folder with names like this one."""
    return readable(str(file.parent / (f"*{file.suffix}" if file.suffix else file.name)))


def _fits(path: Path, format: str | None) -> bool:
    extensions = spec_of(format or "").extensions
    return not extensions or _extension(path) in extensions


def _matches(pattern: str) -> dict[str, Path]:
    folder, rest = _literal(pattern)
    names = glob.glob(os.path.join(glob.escape(folder), rest), recursive=True)  # noqa: PTH118, PTH207 - Path.glob takes no absolute
    names = sorted(name for name in names if not _is_note(name, folder, rest))
    files = {_shown(name): Path(name) for name in names if Path(name).is_file()}
    if not files:
        raise UserError(
            f"[source] path '{readable(pattern)}' matches no file; names that begin with a dot or "
            "an underscore do not count."
        )
    return files


def _spellings(path: str | Path) -> set[Path]:
    """Return the path as written, and without links."""
    return {Path(os.path.abspath(path)), Path(path).resolve()}  # noqa: PTH100 - keeps links


def _relative_parts(files: Iterable[Path], folder: str) -> Iterator[tuple[str, ...]]:
    """Return the parts of paths below the folder, for those that lie there."""
    for top in _spellings(folder):
        yield from (file.relative_to(top).parts for file in files if file.is_relative_to(top))


def _is_data(parts: Iterable[str]) -> bool:
    return not any(part.startswith(HIDDEN_PREFIXES) for part in parts)


def _is_match(pattern: str, file: Path, spelt: Iterable[Path]) -> bool:
    folder, rest = _literal(pattern)
    *above, last = wanted = rest.split("/")
    noted = any(part.startswith("_") for part in wanted)
    # A folder on the way may be a link to where the file is.
    ways = glob.glob(os.path.join(glob.escape(folder), *above), recursive=True)  # noqa: PTH118, PTH207
    linked = file.parent.resolve() in {
        Path(way).resolve() for way in ways if not _is_note(way, folder, rest)
    }
    named = [((file.name,), [last])] if linked else []
    lies = [(parts, wanted) for parts in _relative_parts(spelt, folder or ".")]
    return any(
        _fit_parts(parts, names)
        for parts, names in (*named, *lies)
        if noted or not any(part.startswith("_") for part in parts)
    )


def _fit_parts(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether the names of folders and a file match the parts of a pattern."""
    if not wanted:
        return not parts
    if wanted[0] == "**" and _fit_parts(parts, wanted[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not wanted[0].startswith(".")):
        return False
    if wanted[0] == "**":
        return _fit_parts(parts[1:], wanted)
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _fit_parts(parts[1:], wanted[1:])


def _literal(pattern: str) -> tuple[str, str]:
    """Return the folder that a pattern's first literal parts name, and the rest of the pattern."""
    folder, parts = ("/", pattern.lstrip("/")) if pattern.startswith("/") else ("", pattern)
    first, slash, rest = parts.partition("/")
    while slash and Path(folder, first).is_dir():
        folder, parts = os.path.join(folder, first), rest  # noqa: PTH118 - "./" stays
        first, slash, rest = parts.partition("/")
    return folder, parts


def _is_note(name: str, folder: str, rest: str) -> bool:
    """Return whether a match is another program's metadata, or lies below such a folder, and no
    part of the pattern names it. (A star does not match names that begin with a dot.)"""
    if any(part.startswith("_") for part in rest.split("/")):
        return False
    inside = Path(name).parts[len(Path(folder).parts) :]
    return any(part.startswith("_") for part in inside)


def _resource(path: str, package: str, inside: str) -> Path:
    try:
        file = importlib.resources.files(package).joinpath(inside)
    except ModuleNotFoundError:
        raise UserError(
            f"[source] path '{path}' needs the package '{package}', which is not installed."
        ) from None
    except TypeError:
        raise UserError(
            f"[source] path '{path}' names '{package}', a module without files of its own: "
            "expected 'package:folder/file.csv', or the path of a file."
        ) from None
    except (Exception, SystemExit) as error:  # an import may run anything, and end in any way
        raise UserError(
            f"[source] path '{path}' needs the package '{package}', which cannot be imported: "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error
    if not isinstance(file, Path) or not file.is_file():
        raise UserError(f"[source] path '{path}' is no file: package '{package}' has none there.")
    return file


__all__ = ["common_format", "find_files", "would_match"]
