"""Converts traces of torch to ONNX and compares them with torch, in a child process."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from engine.errors import first_line
from engine.types.plural import counted

OUTPUTS = ("raw", "state_out")
"""The names of what a module returns: its raw scores, and its state if it has one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """Rows, and what torch makes of them.

    Attributes:
        feed: argument -> array.
        expected: raw scores, (n, outputs), and the state, (n, width), if there is one.
    """

    feed: Mapping[str, NDArray[Any]]
    expected: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConversionJob:
    """A trace to convert.

    Attributes:
        program: as `torch.export.save` writes it.
        names: of its arguments, in order.
        outputs: of what it returns.
        cases: batches of several sizes.
    """

    program: bytes
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    cases: tuple[Example, ...]


def convert(jobs: Sequence[ConversionJob]) -> list[bytes | str]:
    """Return each as an ONNX model, or why it is none: a part of a sentence."""
    return [_converted(job) for job in jobs]


def _converted(job: ConversionJob) -> bytes | str:
    import torch

    torch.set_num_threads(1)
    try:
        program = torch.export.load(io.BytesIO(job.program))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program, (), input_names=list(job.names), output_names=list(job.outputs),
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        assert converted is not None, "with dynamo it returns a program"
        model: bytes = converted.model_proto.SerializeToString()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a converter raises is the refusal
        return f"torch.onnx cannot convert it ({first_line(_cause(error))})"
    return _difference(model, job.outputs, job.cases) or model


def _cause(error: BaseException) -> BaseException:
    """Return the error that an error was raised from: torch.onnx's own begins with advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _difference(model: bytes, outputs: Sequence[str], cases: Sequence[Example]) -> str:
    """Return how the model differs from torch; "" if it does not."""
    from models.export.proof import first_difference, session

    got: list[list[NDArray[Any]]] = []
    at = ""
    try:
        runner = session(model)
        named = {value.name for value in runner.get_inputs()}
        for case in cases:
            at = f" on {counted(len(case.expected[0]), 'row')} at a time"
            feed = {name: array for name, array in case.feed.items() if name in named}
            made = zip(runner.run(list(outputs), feed), case.expected, strict=True)
            got.append([array.reshape(expected.shape) for array, expected in made])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds, all its own
        return f"ONNX Runtime cannot run it{at} ({first_line(error)})"
    expected = [case.expected for case in cases]
    for number in range(len(outputs)):
        difference = first_difference([e[number] for e in got], [e[number] for e in expected])
        if difference is not None:
            n, ours, theirs = difference
            what = "scores one" if not number else "makes a state of"
            return (
                f"of {counted(n, 'row')} at a time the converted network {what} {ours:.6g}, where "
                f"torch has {theirs:.6g}: look for sizes that are numbers in its forward"
            )
    return ""


__all__ = ["ConversionJob", "Example", "convert"]
