"""The errors shown to users: each message is one complete sentence.

Imports nothing heavy: the command speaks of a missing library in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable


class HeadraceError(Exception):
    """The run cannot continue. The message is one sentence: expected, got, where, what to do.
    Exit code 1."""


class UserError(HeadraceError, ValueError):
    """The user's mistake (a file, a key, a value). The same kind of sentence, exit code 2."""


class UnreadableFile(UserError):
    """An input file is cut short, damaged, of another format, or not the one that was read before.
    A source that follows its files passes over it."""


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


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error without its full stop, or its type where it says
    nothing: a part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


__all__ = [
    "HeadraceError",
    "ReaderLeft",
    "UnreadableFile",
    "UserError",
    "did_you_mean",
    "first_line",
    "nearest",
]
