"""What a user is told: errors whose message is one whole sentence.

Imports nothing heavy: the command speaks of a missing library in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable


class HeadraceError(Exception):
    """The run cannot go on. The message is one sentence: expected, got, where, what to do. Exit
    code 1."""


class UserError(HeadraceError, ValueError):
    """The user's mistake (a file, a key, a value). Same sentence, exit code 2."""


class ReaderLeft(BrokenPipeError):
    """Whoever reads the standard output has enough of it: ``headrace ... | head``."""


KNOWN = 100
"""Names that a sentence lists: those of settings are fewer, those of columns may be thousands."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name nearest to `word`, or the known names, or nothing;
    to end a sentence."""
    import difflib

    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if match:
        return f" Did you mean '{match[0]}'?"
    more = f" and {len(names) - KNOWN:,} more" if len(names) > KNOWN else ""
    return f" Known: {', '.join(names[:KNOWN])}{more}." if names else ""


__all__ = ["HeadraceError", "ReaderLeft", "UserError", "nearest"]
