"""Makers of candidates that do what a candidate must not. Each runs in the candidate's own
process, found there by its name."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from models.compress.quantize import Feed

TEN_GIGABYTES = 10 * 10**9


def fails(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    target.write_bytes(b"half")
    raise RuntimeError("no such node\nand a long trace")


def lies(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    target.write_bytes(b"not a model")


def silent(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    raise NotImplementedError


def segfaults(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    ctypes.string_at(0)


def aborts(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    os.abort()


def divides(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    os.kill(os.getpid(), signal.SIGFPE)


def exits(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    os._exit(0)


def sleeps(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    while True:
        time.sleep(3600)


def spins(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    while True:
        pass


def eats(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """Ten gigabytes at once."""
    target.write_bytes(np.ones(TEN_GIGABYTES, np.uint8).tobytes())


def nibbles(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """Ten gigabytes in small pieces."""
    pieces = [bytearray(2**20) for _ in range(TEN_GIGABYTES // 2**20)]
    target.write_bytes(b"".join(pieces))


def same(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """The model itself."""
    target.write_bytes(source.read_bytes())


def coarse(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """Activations and scores are symmetric int8, as wide as the longest tail."""
    rows = iter(feeds)

    class Reader(CalibrationDataReader):
        def get_next(self) -> Feed | None:
            return next(rows, None)

    quantize_static(
        source,
        target,
        Reader(),
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Gemm"],
        extra_options={"ActivationSymmetric": True},
    )


def spoilt(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """Every weight is not a number."""
    model = onnx.load(source)
    for weight in model.graph.initializer:
        value = numpy_helper.to_array(weight)
        if value.dtype == np.float32 and value.ndim:
            weight.CopyFrom(numpy_helper.from_array(value * np.float32(np.nan), weight.name))
    onnx.save(model, target)
