"""Where the learners of the tests compute, in which order tests run, and no verdict of Hypothesis
on speed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterable
from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.size import FULL, examples

# Before torch is imported, and for every process that a test starts: threads that spin for a core
# which another worker uses cost three times the processor's time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that may not keep what they compiled compile all of headrace at each start: 0.2 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # nor pytest the tests whose asserts it rewrites
settings.register_profile(
    "headrace",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("headrace")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slow ones first, and as much of them for each worker: xdist gives each of them a part of
    the list, and one that begins a slow test at the end is waited for. Those of a module stay
    together, so that what they share is made once. What is marked `full` runs in CI, and where it
    is asked for by name."""
    named = any("::" in arg for arg in config.args) or config.option.keyword
    if not FULL and not named:
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if _seconds(item):
            modules.setdefault(item.path, []).append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for module in sorted(modules.values(), key=_seconds_of, reverse=True):
        min(parts, key=_seconds_of).extend(module)
    rest = iter([item for item in items if not _seconds(item)])
    for worker, part in enumerate(parts):
        given = sum(map(len, parts[:worker]))
        share = (len(items) - given) // (workers - worker)
        part.extend(islice(rest, max(0, share - len(part))))
    items[:] = [*chain(*parts), *rest]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing of it is garbage: looking for some takes 1.3 s of a core in each worker."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What is there by now stays: the collector need not go through all the libraries each time,
    which takes a second of a core."""
    gc.collect()
    gc.freeze()


def _seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("slow")
    return 0 if mark is None else mark.args[0] if mark.args else 10


def _seconds_of(items: Iterable[pytest.Item]) -> float:
    return sum(map(_seconds, items))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest --device cuda tests/models``: the same tests, with the learners on a GPU."""
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="of learners whose [train] names none (in this process)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Another default of ``[train] device``."""
    device = config.getoption("--device")
    if device == "cpu":
        return
    from models.learners.tabular import TabularLearner

    TabularLearner.Training.model_fields["device"].default = device
    TabularLearner.Training.model_rebuild(force=True)
