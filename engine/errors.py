"""The errors shown to users: each message is one complete sentence.

Imports nothing heavy: the command speaks of a missing library in the same words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self


class HeadraceError(Exception):
    """The run cannot continue. The message is one sentence: expected, got, where, what to do.
    Exit code 1."""


class UserError(HeadraceError, ValueError):
    """The user's mistake (a file, a key, a value). The same kind of sentence, exit code 2."""


class UnreadableFile(UserError):
    """An input file is cut short, damaged, of another format, or not the one that was read before.
    A source that follows its files passes over it."""


class MissingFile(UserError):
    """An input file is not there.

    Args:
        sentence: that says so; a suggestion follows.
        path: the file; None for no suggestion.
        taken: absolute paths that it was not meant to be.
    """

    def __init__(self, sentence: str, path: Path | None = None, taken: Iterable[Path] = ()) -> None:
        near = "" if path is None else nearest(path.name, _names_beside(path, set(taken)))
        super().__init__(sentence + near)
        self._sentence, self._path = sentence, path

    def besides(self, taken: Iterable[Path]) -> Self:
        """Return the same, which suggests none of these files."""
        return type(self)(self._sentence, self._path, taken)


class ReaderLeft(BrokenPipeError):
    """The reader of standard output left: ``headrace ... | head``."""


KNOWN = 100
"""The most names a sentence lists; there are few settings, but perhaps thousands of columns."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to `word`, or nothing; ends a
    sentence."""
    import difflib

    match = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did_you_mean`, or else the list of known names, or nothing; ends a sentence."""
    names = sorted(set(known))
    if said := did_you_mean(word, names):
        return said
    more = f" and {len(names) - KNOWN:,} more" if len(names) > KNOWN else ""
    return f" Known: {', '.join(names[:KNOWN])}{more}." if names else ""


def _names_beside(path: Path, taken: Collection[Path]) -> list[str]:
    folder = path.parent
    if not folder.is_dir():
        return []
    return [file.name for file in folder.iterdir() if file.resolve() not in taken]


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error without its full stop, or its type where it says
    nothing: a part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


__all__ = [
    "HeadraceError",
    "MissingFile",
    "ReaderLeft",
    "UnreadableFile",
    "UserError",
    "did_you_mean",
    "first_line",
    "nearest",
]
