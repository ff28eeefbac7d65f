"""What an import string of a pipeline file names."""

from __future__ import annotations

import importlib
from typing import Any

from engine.errors import UserError, first_line

BESIDE = (
    "expected 'package.module:Class', and the module beside the pipeline file, installed, or in a "
    "folder on PYTHONPATH"
)


def imported(name: str, what: str) -> Any:
    """Return what ``package.module:Name`` names.

    Args:
        what: the table and key, for error messages: ``[model] module``.

    Raises: UserError if it cannot be imported; an import may run anything, and end in any way.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise UserError(f"{what} '{name}' is no import string: expected 'package.module:Class'.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what} '{name}' cannot be imported: {why}; {BESIDE}.") from error


__all__ = ["imported"]
