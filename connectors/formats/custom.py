"""A user's own format, by its import string."""

from __future__ import annotations

from collections.abc import Collection

from connectors.formats.registry import format_of
from engine.types import Format, Schema, UserError, nearest
from engine.user_code.contract_checks import IMPORT_STRING, misspelt_members, require_contract
from engine.user_code.imports import imported


def is_custom(format: str) -> bool:
    """Return whether this names a class, not a built-in format."""
    return IMPORT_STRING.fullmatch(format) is not None


def require_known_format(format: str, known: Collection[str]) -> str:
    """Return the format. Raises: UserError if it is neither in `known` nor a class."""
    if format not in known and not is_custom(format):
        meant = format_of(format)
        hint = f" Did you mean '{meant}'?" if meant in known else nearest(format, known)
        raise UserError(
            f"[source] format '{format}' is none of {', '.join(known)}, nor a class of your own as "
            f"'package.module:Class'.{hint}"
        )
    return format


def load_custom(name: str) -> Format:
    """Return an instance of the class, built without arguments.

    Raises: UserError if there is none, or it does not decode.
    """
    instance = imported(name, "[source] format")
    cls = instance if isinstance(instance, type) else type(instance)
    require_contract(cls, Format, "source", (), key="format")
    if slip := next(misspelt_members(cls, Format), None):
        raise UserError(f"[source] format '{name}': {slip}.")
    custom: Format = instance() if isinstance(instance, type) else instance
    return custom


def require_declared(declared: Schema, described: str) -> Schema:
    """Return the declared columns. Raises: UserError if there are none, or '*' is among them."""
    if not declared or "*" in declared:
        raise UserError(
            f"[source.schema] must name every column of {described}, and not '*': nothing else "
            f"says "
            "what it holds."
        )
    return declared


__all__ = ["is_custom", "load_custom", "require_declared", "require_known_format"]
