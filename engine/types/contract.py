"""What a user's class must have to be a source, a stage, a learner or a sink: told by name before
anything is read, not by an AttributeError in mid-run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from engine.types import Format, Learner, Sink, Source, Stage, UserError

REQUIRED: Mapping[type, tuple[str, ...]] = {
    Source: ("schema", "read", "seek", "commit", "lag", "progress", "close"),
    Format: ("decode",),
    Stage: ("bind", "apply", "snapshot", "restore", "transforms"),
    Learner: ("learn", "predict", "state_dict", "load_state_dict"),
    Sink: ("write", "flush", "snapshot", "restore", "close"),
}
"""Contract -> its methods without a default."""
OPTIONAL: Mapping[type, tuple[str, ...]] = {
    Source: ("nbytes", "limit_memory"),
    Stage: ("vocabulary_sizes", "encoders", "digest", "remarks", "single_pass"),
    Learner: ("memory", "replay_bytes", "remarks", "build", "augmentation", "soft_targets"),
    Sink: ("counts", "nbytes", "limit_memory", "share_transaction"),
}
"""Contract -> what a class may have besides."""
ALIKE = 0.85
"""How like an optional name another must be to be taken for a slip."""


def require_contract(
    cls: type, contract: type, section: str, tables: tuple[str, ...] = ("Settings",)
) -> None:
    """Raises: UserError where the class lacks a method of the contract, or settings of its own."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    for table in tables:
        settings = getattr(cls, table, None)
        if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
            raise UserError(
                f"[{section}] kind '{name}' has no {table}: expected a nested class {table} that "
                "inherits engine.types.Settings."
            )
    own = [word for word in dir(cls) if not word.startswith("_")]
    for method in sorted({*REQUIRED.get(contract, ()), *_declared(contract)}):
        member = getattr(cls, method, None)
        stub = method in REQUIRED.get(contract, ()) and member is getattr(contract, method, None)
        if member is None or stub:
            near = difflib.get_close_matches(method, [w for w in own if w != method], n=1)
            raise UserError(
                f"[{section}] kind '{name}' has no method '{method}', which every "
                f"{_called(contract)} needs: see engine.types.{contract.__name__}."
                + (f" It has '{near[0]}': is that meant?" if near else "")
            )


def misspelt_members(cls: type, contract: type) -> Iterator[str]:
    """Names of a class that look like a misspelt optional one: without a word they do nothing."""
    optional = OPTIONAL.get(contract, ())
    known = {*optional, *_declared(contract), *REQUIRED.get(contract, ())}
    for word in sorted({word for base in cls.__mro__[:-1] for word in vars(base)} - known):
        near = difflib.get_close_matches(word, optional, n=1, cutoff=ALIKE)
        if near and not word.startswith("_") and not hasattr(cls, near[0]):
            yield (
                f"{cls.__qualname__}.{word} is called by nobody: a {_called(contract)} may have "
                f"'{near[0]}'; is that meant?"
            )


def _declared(contract: type) -> set[str]:
    """The public methods and properties that a contract's own body has."""
    return {
        name
        for base in contract.__mro__
        if base.__module__.startswith(("engine", "models"))
        for name, member in vars(base).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }


def _called(contract: type) -> str:
    return contract.__name__.lower()


__all__ = ["misspelt_members", "require_contract"]
