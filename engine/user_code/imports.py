"""What an import string of a pipeline file names."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from engine.errors import UserError, did_you_mean, first_line

BESIDE = (
    "expected 'package.module:Class', and the module beside the pipeline file, installed, or in a "
    "folder on PYTHONPATH"
)


OWN_PACKAGES = ("connectors", "engine", "models")


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
        if own := _own_package(error):
            raise UserError(
                f"{what} '{name}' cannot be imported: {why}; '{own}' is a package of headrace's "
                "own, which comes first: rename yours."
            ) from error
        hint = _nearest(attribute, error)
        raise UserError(f"{what} '{name}' cannot be imported: {why}; {BESIDE}.{hint}") from error


def _own_package(error: BaseException) -> str | None:
    """Return the package of headrace's own in which something was looked for in vain: one of the
    user's of the same name was meant."""
    if isinstance(error, ImportError):
        name = str(error.name).partition(".")[0]
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    else:
        return None
    return name if name in OWN_PACKAGES else None


def _nearest(attribute: str, error: BaseException) -> str:
    """Return which name of the module may be meant, where it lacks this one."""
    if not (isinstance(error, AttributeError) and isinstance(error.obj, ModuleType)):
        return ""
    return did_you_mean(attribute, vars(error.obj))


__all__ = ["imported"]
