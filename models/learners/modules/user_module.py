"""A module of the user's: found by its import string, made from its arguments, and what its forward
asks for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from engine.types import HeadraceError, UserError, first_line, nearest
from engine.user_code.imports import imported
from models.carry import STATE
from models.net_input import NetInput
from models.seeded import seeded

MASKED = ("ids", "array")
"""Forms of inputs that have a mask."""
OTHERS = ("engine", "models", "importlib", "torch")
"""Packages whose lines are not the user's."""
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What a module's forward can be called with.

    Attributes:
        required, optional: names of its parameters, in order.
        takes_any: whether it takes further ones, ``**kwargs``.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    takes_any: bool

    def takes(self, name: str) -> bool:
        """Return whether it can be given a tensor of that name."""
        return self.takes_any or name in self.required or name in self.optional


def require_source(module: object) -> None:
    """Raises: ValueError for a ``[model] module`` that is no source of `make_module`, nor None."""
    if not isinstance(module, str | nn.Module | None):
        raise ValueError(
            f"expected an import string, 'package.module:Class', for module, got {module!r}"
        )


def make_module(
    source: str | nn.Module, arguments: Mapping[str, Any], *, seed: int = 0
) -> nn.Module:
    """Return a module of the user's, on the CPU, with its first weights.

    Args:
        source: an import string of a class, a function that returns a module, or a module; or a
            module itself, which is copied.
        arguments: of the class or function.
        seed: of torch's random numbers while it is made.

    Raises: UserError if that is no module, or it cannot be made.
    """
    target = imported(source, "[model] module") if isinstance(source, str) else source
    if isinstance(target, nn.Module):
        return _copied(target, arguments)
    who = named(source)
    if not callable(target):
        raise UserError(
            f"{who} is a {type(target).__name__}: expected a class that inherits torch.nn.Module, "
            "or a function that returns one."
        )
    _check_arguments(who, target, arguments)
    with seeded(seed):
        try:
            module = target(**arguments)
        except HeadraceError:
            raise
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{key} = {value!r}" for key, value in arguments.items())
            raise UserError(
                f"{who} cannot be made with {given or 'no arguments'}: {error_text(error)}: change "
                "[model] arguments, or the class."
            ) from error
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{who} makes a {type(module).__name__}: expected a class that inherits "
            "torch.nn.Module, or a function that returns one."
        )
    return module


def forward_of(source: str | nn.Module, arguments: Mapping[str, Any]) -> Forward:
    """Return what the forward of a module can be called with. A class is not made for it.

    Raises: UserError as `make_module`, and for a forward that cannot be called by names.
    """
    target = imported(source, "[model] module") if isinstance(source, str) else source
    if not (isinstance(target, nn.Module) or _is_module_class(target)):
        target = make_module(source, arguments)
    who, forward = named(source), target.forward
    # Bound where it is a module, a function where it is a class.
    if getattr(forward, "__func__", forward) is nn.Module.forward:
        raise UserError(f"{who} has no forward: write one that returns a raw score per row.")
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        raise UserError(
            f"{who} has a forward whose parameters cannot be seen: wrap it in a module whose "
            "forward names them."
        ) from None
    if isinstance(target, type):
        parameters = parameters[1:]
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise UserError(
                f"{who} has a forward with the parameter '{parameter}', which cannot be given by "
                "name: name each input."
            )
    own = [p for p in parameters if p.kind in NAMED]
    return Forward(
        required=tuple(p.name for p in own if p.default is inspect.Parameter.empty),
        optional=tuple(p.name for p in own if p.default is not inspect.Parameter.empty),
        takes_any=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
    )


def asked_inputs(forward: Forward, inputs: Sequence[str]) -> tuple[str, ...]:
    """Return the required parameters of a forward that are neither among the inputs nor the mask
    of one."""
    masks = {f"{name}_mask" for name in (*inputs, *forward.required)}
    return tuple(name for name in forward.required if name not in inputs and name not in masks)


def require_state(source: str | nn.Module, forward: Forward) -> Forward:
    """Return a forward without its parameter ``state``, which is no input.

    Raises: UserError if it has none.
    """
    if not forward.takes(STATE):
        raise UserError(
            f"{named(source)} has a forward that takes no '{STATE}', and [model.state] gives it "
            f"one: let it take {STATE}, (rows, width), and return scores and the new {STATE}."
        )
    return replace(
        forward,
        required=tuple(name for name in forward.required if name != STATE),
        optional=tuple(name for name in forward.optional if name != STATE),
    )


def matched_masks(
    source: str | nn.Module, forward: Forward, inputs: Sequence[NetInput]
) -> list[str]:
    """Return the masks that a forward takes.

    Raises: UserError if it does not take an input, or requires a mask that an input does not have.
    """
    names = [each.name for each in inputs]
    for each in inputs:
        if not forward.takes(each.name):
            takes = (*forward.required, *forward.optional)
            raise UserError(
                f"{named(source)} has a forward that takes no '{each.name}', and [model] names "
                f"such an input: it takes {', '.join(takes) or 'nothing'}."
                f"{nearest(each.name, takes)}"
            )
    masks = [f"{each.name}_mask" for each in inputs if each.form in MASKED]
    for name in forward.required:
        if name not in names and name not in masks:
            form = next((each.form for each in inputs if f"{each.name}_mask" == name), "")
            why = f": an input of {form} has none, take it out" if form else ""
            raise UserError(f"{named(source)} has a forward that asks for '{name}'{why}.")
    return [mask for mask in masks if forward.takes(mask)]


def named(source: str | nn.Module) -> str:
    """Return how sentences name a module."""
    if isinstance(source, str):
        return f"[model] module '{source}'"
    return f"The module {type(source).__name__}"


def error_text(error: BaseException) -> str:
    """Return an error of the user's code in one line, with its place in that code."""
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        frame = traceback.tb_frame
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in OTHERS:
            place = f" ({Path(frame.f_code.co_filename).name}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _copied(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    if arguments:
        raise UserError(
            "[model] arguments are for a class, and module is made already: take them out."
        )
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UserError(
            f"{named(module)} cannot be copied: {error_text(error)}: keep no computed tensors in "
            "it, or name its class in [model] module."
        ) from error


def _check_arguments(who: str, target: Any, arguments: Mapping[str, Any]) -> None:
    """Raises: UserError for an argument that is not there, or is missing."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return  # a builtin does not say
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = [p.name for p in signature.parameters.values() if p.kind in NAMED]
        odd = next((key for key in arguments if key not in known), None)
        near = "" if odd is None else nearest(odd, known)
        raise UserError(
            f"{who} takes {_listed(signature)}, and [model] arguments do not fit: {error}.{near}"
        ) from None


def _listed(signature: inspect.Signature) -> str:
    """Return the parameters in words: ``hidden, depth = 2``."""
    plain = [
        str(parameter.replace(annotation=inspect.Parameter.empty)).replace("=", " = ")
        for parameter in signature.parameters.values()
    ]
    return ", ".join(plain) or "no arguments"


def _is_module_class(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, nn.Module)


__all__ = [
    "Forward",
    "asked_inputs",
    "error_text",
    "forward_of",
    "make_module",
    "matched_masks",
    "named",
    "require_source",
    "require_state",
]
