"""Environment variables that libraries read when they are first imported.

`import engine` calls `prepare`, so it holds for the command, for scripts and for child processes.
What the user has set is never changed.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import resource
from pathlib import Path

from engine.errors import UserError

ASKS = "set NUMBA_CACHE_DIR to a folder that can be written"
ENOUGH_FILES = 64
"""The open files a process should be allowed; the libraries' threads and caches alone need some."""
ENOUGH_ADDRESSES = 16 << 30
"""The bytes of address space PyTorch, polars and ONNX Runtime need; on two cores 8 GiB sufficed,
6 did not."""


COLLECTION = gc.get_threshold()
"""How often Python looks for garbage, as it was set before."""
RARELY = (1000 * COLLECTION[0], *COLLECTION[1:])


def cores() -> int:
    """Processors that this process may use."""
    # Linux alone has sched_getaffinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def prepare() -> None:
    """Switch telemetry off, let threads that wait sleep, and choose a cache for compiled loops."""
    # ONNX Runtime decides while it is imported; its own switch comes after that, and is too late.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Threads of OpenMP, torch's and LightGBM's, spin while they wait for each other. Where others
    # use the cores, they spin in place of the one they wait for: a step took ten times as long.
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "NUMBA_CACHE_DIR" not in os.environ and not _keeps_compiled():
        _use_own_cache()


def collect_rarely() -> None:
    """Look for garbage a thousandth as often. What is imported and built at the start stays, and
    looking through it took a seventh of the start of an engine."""
    gc.set_threshold(*RARELY)


def collect_as_usual() -> None:
    """Look for garbage as before `collect_rarely`: batches must not wait in cycles. What is there
    by now stays, so it is not looked through again, which would hold up a batch."""
    if gc.get_threshold() == RARELY:
        gc.freeze()
        gc.set_threshold(*COLLECTION)


def remarks() -> list[str]:
    """Return remarks on limits of this environment.

    Raises: UserError if compiled loops have no place at all, or the libraries no room for their
        files: they would end the process themselves.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < ENOUGH_FILES:
        raise UserError(
            f"'ulimit -n' allows {files} open files: expected {ENOUGH_FILES} at the least; raise "
            "it (systemd: LimitNOFILE)."
        )
    folder = os.environ.get("NUMBA_CACHE_DIR")
    if folder is None and not _keeps_compiled():
        raise UserError(
            f"Compiled loops need a folder, and headrace's own, {_home()} and the temporary one "
            f"are all read-only: {ASKS}."
        )
    _require_own_packages()
    warnings = []
    if folder in _own_caches:
        warnings.append(
            f"loops are compiled anew at every start, as neither code nor home is writable: {ASKS}"
        )
    if (limit := address_space()) is not None and limit < ENOUGH_ADDRESSES:
        warnings.append(
            f"'ulimit -v' allows {limit / 2**30:.1f} GiB of addresses, and the libraries reserve "
            f"up to {ENOUGH_ADDRESSES >> 30}, used or not: they may end the process without a "
            "word; limit memory by a control group instead (systemd: MemoryMax)"
        )
    return warnings


def address_space() -> int | None:
    """Return the address space of this process in bytes (``ulimit -v``); None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _require_own_packages() -> None:
    """Raises: UserError where a module on PYTHONPATH hides one of headrace's packages."""
    home = Path(__file__).parents[2].resolve()
    for name in ("connectors", "models"):
        spec = importlib.util.find_spec(name)
        places = (
            [] if spec is None else [*(spec.submodule_search_locations or ()), str(spec.origin)]
        )
        if places and Path(places[0]).resolve().parent != home:
            raise UserError(
                f"'{places[0]}' hides headrace's package '{name}': rename it, or take its folder "
                "out of PYTHONPATH."
            )


def _keeps_compiled() -> bool:
    """Return whether numba has a place for its cache, beside the code or in the user's caches:
    in a container both may be read-only."""
    return _writable(Path(__file__).parent / "__pycache__") or _writable(_home() / "numba")


def _home() -> Path:
    # Path.expanduser raises where a user has no home at all, as one without a name may.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111


_own_caches: list[str] = []


def _use_own_cache() -> None:
    """Use a new folder for this process: cached code is executed as found, and a folder with a
    known name may be somebody else's."""
    import shutil
    import tempfile

    try:
        folder = tempfile.mkdtemp(prefix="headrace-compiled-")
    except OSError:
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    _own_caches.append(folder)


def _writable(path: Path) -> bool:
    """Return whether the folder can be written, or created. One that cannot even be reached
    (another user's home) cannot."""
    there = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110 - raises not
    return os.access(there, os.W_OK | os.X_OK)


__all__ = [
    "address_space",
    "collect_as_usual",
    "collect_rarely",
    "cores",
    "prepare",
    "remarks",
]
