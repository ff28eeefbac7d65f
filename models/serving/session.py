"""Sessions of ONNX Runtime. Imports neither torch nor polars, so that a candidate's process starts
in a moment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from engine.errors import first_line

# The GPU build warns on every machine without one; what matters is said by the predictor's guard.
ort.set_default_logger_severity(4)

PROVIDER_ORDER = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
PROVIDER_NAMES = {
    "tensorrt": PROVIDER_ORDER[0],
    "cuda": PROVIDER_ORDER[1],
    "cpu": PROVIDER_ORDER[2],
}
# By itself CUDA rounds the factors of a float32 product to 10 bits (TF32): a small score of the
# learner's then differs in its third digit. Who wants half the digits takes the float16 candidate.
OPTIONS = {PROVIDER_ORDER[1]: {"use_tf32": "0"}}

SOURCES = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+\.(cc|h):\d+ .*?\)( const)? |\S+\.cc:\d+ "
)
"""Where in ONNX Runtime's sources an error arose, as its messages say."""
MAX_REASON = 300


class NotAModel(Exception):
    """A file that ONNX Runtime cannot load; says why."""


def load(path: Path, providers: tuple[str, ...], threads: int | None = None) -> Any:
    """An ONNX Runtime session on the first of `providers` that works here, at last on the CPU.

    ONNX Runtime falls back in silence: ask `active_provider` of the result where it really runs.

    Raises: NotAModel.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    # Threads that spin between batches take the cores from the loader's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    names = list(
        dict.fromkeys([*(PROVIDER_NAMES.get(name, name) for name in providers), PROVIDER_ORDER[-1]])
    )
    reason = ""
    for first in range(len(names)):
        chosen = [(name, OPTIONS.get(name, {})) for name in names[first:]]
        try:
            # Its own next try would say so on the standard output.
            return ort.InferenceSession(
                os.fspath(path), options, providers=chosen, enable_fallback=False
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds, all its own
            reason = complaint(error)
    raise NotAModel(reason)


def complaint(error: Exception) -> str:
    """What ONNX Runtime says, without where in its sources it says so: a part of a sentence."""
    reason = SOURCES.sub("", first_line(error).rpartition("Status Message: ")[2]).strip()
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."


def active_provider(session: Any) -> str:
    """The provider of a session."""
    return str(session.get_providers()[0])


def available_providers(requested: tuple[str, ...]) -> tuple[str, ...]:
    """The wished providers, or CUDA and the CPU, that this build of ONNX Runtime has and whose
    device is there. TensorRT is for those who ask: it builds an engine for minutes first, and again
    for batches of another size."""
    here = set(ort.get_available_providers())
    if not Path("/dev/nvidiactl").exists():
        here -= set(PROVIDER_ORDER[:2])
    names = [PROVIDER_NAMES.get(name, name) for name in requested] or list(PROVIDER_ORDER[1:])
    return tuple(name for name in names if name in here)


def known_operators() -> frozenset[tuple[str, str]]:
    """The operators that this build of ONNX Runtime has: domain and name."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return frozenset((schema.domain, schema.name) for schema in state.get_all_operator_schema())


def runtime_version() -> str:
    """ONNX Runtime's, whichever of its packages is installed."""
    return str(ort.__version__)


__all__ = [
    "PROVIDER_NAMES",
    "NotAModel",
    "active_provider",
    "available_providers",
    "complaint",
    "known_operators",
    "load",
    "runtime_version",
]
