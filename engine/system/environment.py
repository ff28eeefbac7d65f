"""What the libraries below must find in the environment before the first of them is imported.

`import engine` calls `prepare`, so it holds for the command, for scripts and for child processes.
What the user has set is never changed.
"""

from __future__ import annotations

import atexit
import os
import resource
from pathlib import Path

from engine.errors import UserError

ASKS = "set NUMBA_CACHE_DIR to a folder that can be written"
ENOUGH_FILES = 64
"""Files that a process may have open at once; the libraries' threads and caches alone take some."""
ENOUGH_ADDRESSES = 16 << 30
"""Bytes that PyTorch, polars and ONNX Runtime find room in; 8 GiB did on two cores, 6 did not."""


def cores() -> int:
    """Processors that this process may use."""
    # Linux alone has sched_getaffinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def prepare() -> None:
    """Switch telemetry off, and find a place for compiled loops."""
    # ONNX Runtime decides while it is imported; its own switch comes after that, and is too late.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if "NUMBA_CACHE_DIR" not in os.environ and not _keeps_compiled():
        _use_own_cache()


def remarks() -> list[str]:
    """What is worse here than it could be.

    Raises: UserError where compiled loops have no place at all, or the libraries no room for their
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
    """Bytes of addresses that this process may have (``ulimit -v``); None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _keeps_compiled() -> bool:
    """Whether numba finds a place by itself, beside the code or in the user's caches: in a
    container both may be read-only."""
    return _writable(Path(__file__).parent / "__pycache__") or _writable(_home() / "numba")


def _home() -> Path:
    # Path.expanduser raises where a user has no home at all, as one without a name may.
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111


_own_caches: list[str] = []


def _use_own_cache() -> None:
    """A new folder for this process: compiled loops are run as they are found, and one of a known
    name may be somebody else's."""
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
    """Whether the folder can be written, or made. One that cannot even be reached (a home of
    another user's) cannot."""
    there = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110 - raises not
    return os.access(there, os.W_OK | os.X_OK)


__all__ = ["address_space", "prepare", "remarks"]
