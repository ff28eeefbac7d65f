"""What the benchmarks share: interleaved timing, and a report that says where it was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path("runs/bench")
PACKAGES = (
    "headrace",
    "numpy",
    "polars",
    "torch",
    "torchdata",
    "numba",
    "onnxruntime-gpu",
    "river",
    "scikit-learn",
    "datasketch",
    "pillow",
    "torchvision",
    "mlxtend",
    "spdl",
    "datasets",
)


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run in each round, by the wall or another clock.

    Each is run once before (caches, compilation), then in turns that begin one further each round,
    so that what else the machine does hits all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    names = list(runs)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            runs[name]()
            seconds[name].append(clock() - start)
    return seconds


def median(seconds: Sequence[float]) -> float:
    """The middle one: a disturbed round does not move it."""
    return statistics.median(seconds)


def report(
    name: str,
    figures: Mapping[str, Any],
    *,
    seconds: Mapping[str, Sequence[float]] | None = None,
    goal: str | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Print the figures; write them, with machine and versions, to ``<folder>/<name>.json``.

    Args:
        figures: what was found, rates and ratios.
        seconds: the raw rounds behind them.
        goal: what was hoped for, in words.
    """
    print(f"{name}: goal {goal}" if goal else name)
    for key, value in figures.items():
        print(f"  {key:<40} {_text(value):>14}")
    content = {
        "benchmark": name,
        "goal": goal,
        "figures": dict(figures),
        "seconds": {key: list(values) for key, values in (seconds or {}).items()},
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"  {path}")
    return path


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, operating system."""
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


__all__ = ["FOLDER", "interleave", "machine", "median", "report", "versions"]
