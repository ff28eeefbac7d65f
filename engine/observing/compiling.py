"""Says that compiled loops are compiled, which takes up to a minute at their first use and nothing
afterwards, and keeps that apart from a stall: the loop waits for them, and is well."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from numba.core import event

from engine.observing import timing
from engine.observing.service import Heartbeat

log = logging.getLogger("headrace.compiling")
PRODUCTS = "scipy.linalg.cython_blas"
"""What numba computes products of matrices with, where scipy is installed."""


ARRAYS = "numba.np.arraymath"
"""What asks for that, when the first loop over arrays is made."""


class _WithoutProducts(MetaPathFinder):
    """Lets numba make loops over arrays without scipy, which it asks for to multiply matrices: no
    loop here does, and it takes an eighth of a start and 16 MiB. A function of a user's that does
    gets it."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != ARRAYS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or PRODUCTS in sys.modules or importlib.util.find_spec("scipy") is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def run_without(module: ModuleType) -> None:
            sys.modules[PRODUCTS] = None  # type: ignore[assignment] # as what cannot be found
            try:
                run(module)
            finally:
                del sys.modules[PRODUCTS]
            module.__dict__["_HAVE_BLAS"] = True

        loader.exec_module = run_without
        return spec


if ARRAYS not in sys.modules:
    sys.meta_path.insert(0, _WithoutProducts())
_active: list[_Listener] = []
"""The listeners of the blocks that are running, the outermost first."""


@contextmanager
def reported(heartbeat: Heartbeat | None = None) -> Iterator[None]:
    """Log once if a loop is compiled in the block, on any thread, and pause the heartbeat
    meanwhile, if there is one. What comes from the cache is not compiled. Of nested blocks, the
    outermost logs."""
    listener = _Listener(heartbeat or Heartbeat())
    _active.append(listener)
    try:
        with event.install_listener("numba:compile", listener):
            yield
    finally:
        _active.remove(listener)


def seconds() -> float:
    """Return the seconds in which loops were compiled so far, also those of one under way: they
    grow while one is."""
    return timing.compiling_seconds() + sum(listener.under_way() for listener in _active[:1])


class _Listener(event.Listener):
    """Hears of each compilation; those of the functions that a loop calls are inside its own."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._logged = False
        self._depth, self._began = 0, 0.0

    def under_way(self) -> float:
        """Return the seconds since a compilation began that goes on; 0 if there is none."""
        return time.perf_counter() - self._began if self._depth else 0.0

    def on_start(self, event: event.Event) -> None:
        self._heartbeat.pause()
        if not self._depth:
            self._began = time.perf_counter()
        self._depth += 1
        if self is _active[0] and not self._logged:
            self._logged = True
            function = event.data["dispatcher"].py_func
            log.info(
                "compiling the loops of this pipeline, which takes up to a minute; later runs find "
                "them compiled",
                extra={"first": f"{function.__module__}.{function.__qualname__}"},
            )

    def on_end(self, event: event.Event) -> None:
        self._heartbeat.resume()
        self._depth -= 1
        if not self._depth and self is _active[0]:
            timing.compiled(time.perf_counter() - self._began)


__all__ = ["reported", "seconds"]
