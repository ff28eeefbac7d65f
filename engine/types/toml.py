"""Names and values as a pipeline file writes them, for sentences and files that people copy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(name: str) -> str:
    """Return a name as a key of TOML, quoted where it must be."""
    return name if BARE_KEY.fullmatch(name) else toml_value(name)


def toml_value(value: object) -> str:
    """Return a value of TOML on one line.

    Args:
        value: text, a number, a truth value, or a list or mapping of such.
    """
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(str(key))} = {toml_value(v)}" for key, v in value.items())
        return f"{{{pairs}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        # JSON's text is TOML's but for one character, and for pairs of escapes for one sign.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["toml_key", "toml_value"]
