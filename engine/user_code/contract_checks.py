"""Checks a class against its contract before anything is read: one sentence instead of an
AttributeError in mid-run.

A class is complete if it inherits its contract and defines its abstract members. Its other members
must match the contract's: a method where the contract has one, with a compatible signature.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, get_type_hints

from pydantic import BaseModel

from engine.errors import UserError
from engine.types.contracts import Buffered, Learner, SharedSource, Sink, Source

IMPORT_STRING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""``package.module:Class`` in a pipeline file."""
PAIRS = (("snapshot", "restore"), ("state_dict", "load_state_dict"))
"""Methods that make sense only together: one takes what the other returns."""
EXTENSIONS: Mapping[type, tuple[type, ...]] = {
    Source: (SharedSource, Buffered),
    Sink: (Buffered,),
    Learner: (Buffered,),
}
"""Contract -> contracts that a class may inherit in addition."""
ALIKE = 0.85
"""The similarity to a name of the contract above which another name is taken for a typing error."""


def require_contract(
    cls: type,
    contract: type,
    section: str,
    tables: tuple[str, ...] = ("Settings",),
    *,
    key: str = "kind",
) -> None:
    """Raises: UserError if the class is none of that contract, lacks a method or settings of its
    own, or has something else in a method's place.

    Args:
        section, key: where the pipeline file names it.
        tables: nested Settings that it must have.
    """
    who = f"[{section}] {key} '{cls.__module__}:{cls.__qualname__}'"
    for table in tables:
        settings = _static(cls, table)
        if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
            raise UserError(
                f"{who} has no {table}: expected a nested class {table} that inherits "
                "engine.types.Settings."
            )
    what, home = _called(contract), _home(contract)
    if not issubclass(cls, contract):
        article = "an" if what[0] in "aeiou" else "a"
        raise UserError(
            f"{who} does not inherit {home}, as {article} {what} must: write class "
            f"{cls.__name__}({home})."
        )
    for name, why in _lacking(cls, contract):
        near = difflib.get_close_matches(name, _own(cls) - members(contract), n=1)
        hint = f" It has '{near[0]}': is that meant?" if near else ""
        raise UserError(f"{who} has no method '{name}', which {why} needs: see {home}.{hint}")
    if wrong := _first_mistake(cls, contract):  # type: ignore[arg-type]  # classes are hashable
        raise UserError(f"{who}: {wrong}; see {home}.")


def require_attributes(component: object, contract: type, section: str) -> None:
    """Raises: UserError if a component that was just made has not what its contract's own
    ``__init__`` sets: the class has one that does not call it; or another kind of value there."""
    cls = type(component)
    who = f"[{section}] kind '{cls.__module__}:{cls.__qualname__}'"
    for name, expected in get_type_hints(contract).items():
        if _static(contract, name) is not None:
            continue  # a default
        if name not in dir(component):
            raise UserError(
                f"{who} has no '{name}' once it is made: let its __init__ call super().__init__, "
                f"or set self.{name}; see {_home(contract)}."
            )
        held = inspect.getattr_static(component, name)
        if hasattr(type(held), "__get__") or expected is Any or not isinstance(expected, type):
            continue  # what has __get__ is a property, which may not be ready yet
        if not isinstance(held, expected):
            raise UserError(
                f"{who} has {repr(held)[:40]} as its '{name}', expected a {expected.__name__}: "
                f"see {_home(contract)}."
            )


def misspelt_members(cls: type, contract: type) -> Iterator[str]:
    """Return members of a user's class that look like a misspelt member of the contract, or
    belong to a contract it does not inherit, and that it does not use itself: nothing calls
    them."""
    own = _own(cls) - members(contract) - _used(cls)
    defaults = [n for n in members(contract) if _static(cls, n) is _static(contract, n)]
    for name in sorted(own):
        head = f"{cls.__qualname__}.{name} is never called: "
        other = [c for c in EXTENSIONS.get(contract, ()) if name in members(c)]
        if any(issubclass(cls, c) for c in other):
            continue
        if other:
            yield f"{head}inherit {_home(other[0])} as well, or take it out"
        elif near := difflib.get_close_matches(name, defaults, n=1, cutoff=ALIKE):
            yield f"{head}a {_called(contract)} may have '{near[0]}'; is that meant?"


@functools.lru_cache(maxsize=256)
def _first_mistake(cls: type, contract: type) -> str | None:
    """Kept: signatures take half a millisecond a class, and each pipeline asks for its own."""
    return next(_mistakes(cls, contract), None)


def _mistakes(cls: type, contract: type) -> Iterator[str]:
    """Yield what differs from the contract in a class that has all methods."""
    for name in ("__init__", *sorted(members(contract))):
        theirs, ours = _static(cls, name), _static(contract, name)
        if theirs is ours:
            continue
        if not isinstance(ours, FunctionType | classmethod) and name != "__init__":
            if isinstance(theirs, FunctionType):
                yield f"'{name}' is a method, expected a value, or @property above it"
            continue
        yield from _method_mistakes(name, theirs, ours)


def _lacking(cls: type, contract: type) -> Iterator[tuple[str, str]]:
    """Return the methods that the class lacks, and what needs them."""
    what = _called(contract)
    for name in sorted(_abstract(cls)):
        yield name, f"every {what}"
    for pair in PAIRS:
        lacks = [n for n in pair if _static(cls, n) is _static(contract, n)]
        if set(pair) <= members(contract) and len(lacks) == 1:
            (has,) = set(pair) - set(lacks)
            yield lacks[0], f"a {what} with '{has}'"


def _method_mistakes(name: str, theirs: Any, ours: Any) -> Iterator[str]:
    function = _function(theirs)
    if not callable(function):
        is_property = isinstance(theirs, property)
        what = "a property" if is_property else f"a {type(theirs).__name__}"
        yield f"'{name}' is {what}, expected a method: def {name}{_signature(ours)}"
        return
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        yield f"'{name}' is a generator (it has a yield), expected a method that returns its result"
        return
    if inspect.iscoroutinefunction(function):
        yield f"'{name}' is async, and is never awaited: expected a plain method"
        return
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin says nothing of what it takes
        return
    given = len(_parameters(ours)) - isinstance(theirs, staticmethod)
    try:
        signature.bind(*(None,) * given)
    except TypeError:
        yield f"'{name}' takes {_signature(theirs)}, expected {_signature(ours)}"


def _parameters(method: Any) -> list[str]:
    """Return the parameter names of a contract's method, self included."""
    if method is object.__init__:
        return ["self"]
    return list(inspect.signature(_function(method)).parameters)


def _function(member: Any) -> Any:
    """Return the function inside a static or class method; anything else unchanged."""
    return member.__func__ if isinstance(member, staticmethod | classmethod) else member


def _signature(method: Any) -> str:
    return f"({', '.join(_parameters(method))})"


def _static(cls: type, name: str) -> Any:
    """Return a member as written in the class, a property as a property; None if there is none."""
    return inspect.getattr_static(cls, name, None)


def _abstract(cls: type) -> set[str]:
    """Return abstract methods that the class does not define."""
    return set(cls.__abstractmethods__) if isinstance(cls, ABCMeta) else set()


def members(contract: type) -> set[str]:
    """The public methods, properties and values that a contract has."""
    return {
        name
        for base in contract.__mro__[:-1]
        for name, member in vars(base).items()
        if not name.startswith("_") and not isinstance(member, type)
    }


def _own(cls: type) -> set[str]:
    """Return public names in the user's part of a class."""
    return {
        name
        for base in _user_bases(cls)
        for name, member in vars(base).items()
        if not name.startswith("_") and not isinstance(member, type)
    }


def _used(cls: type) -> set[str]:
    """Return names that the user's part of a class mentions in its own code."""
    used: set[str] = set()
    for base in _user_bases(cls):
        for member in vars(base).values():
            function = member.fget if isinstance(member, property) else _function(member)
            if isinstance(function, FunctionType):
                used.update(_names(function.__code__))
    return used


def _names(code: CodeType) -> Iterator[str]:
    """Return names that a function mentions, also in its inner functions."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _user_bases(cls: type) -> list[type]:
    ours = ("engine.", "connectors.", "models.", "builtins", "abc", "typing")
    return [base for base in cls.__mro__ if not base.__module__.startswith(ours)]


def _called(contract: type) -> str:
    return contract.__name__.lower()


def _home(contract: type) -> str:
    """Return the module from which a user imports it."""
    module = contract.__module__
    home = "engine.types" if module.startswith("engine.types") else module.rpartition(".")[0]
    return f"{home}.{contract.__name__}"


__all__ = [
    "IMPORT_STRING",
    "members",
    "misspelt_members",
    "require_attributes",
    "require_contract",
]
