"""``python -m tests.bench``: every benchmark, or those that are named."""

from __future__ import annotations

import argparse
import importlib

ROOMS = {
    "reading": (
        "formats", "inputs", "explore", "loading", "images", "ragged", "memory", "tuning",
        "bottleneck", "deadline",
    ),
    "stages": ("scrub", "window", "labels", "augment"),
    "models": (
        "linear", "training", "inference", "adopted", "swaps", "learning", "quality", "pedestrians",
        "reviews", "fewshot", "states", "fraud",
    ),
    "running": (
        "kafka", "sink", "trickle", "answers", "freshness", "live_swaps", "overhead", "soak",
        "start", "page",
    ),
}  # fmt: skip
"""Folder -> the benchmarks in it."""
NAMES = tuple(name for names in ROOMS.values() for name in names)
"""All that run everywhere; ``gpu`` must be asked for."""


def main() -> None:
    """Run them one after the other; each prints its figures and writes its JSON to runs/bench."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Ratios taken in one run: medians of interleaved rounds. Raw seconds, machine "
        "and versions go to runs/bench/NAME.json. Example: python -m tests.bench loading --quick",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (all by default), or gpu"
    )
    parser.add_argument("--quick", action="store_true", help="small and rough: does it run at all?")
    options = parser.parse_args()
    for name in options.names or NAMES:
        room = next((room for room, names in ROOMS.items() if name in names), None)
        if name == "gpu":
            room = "models"
        if room is None:
            parser.error(f"there is no benchmark '{name}': {', '.join(NAMES)}, gpu")
        importlib.import_module(f"tests.bench.{room}.bench_{name}").main(quick=options.quick)


if __name__ == "__main__":
    main()
