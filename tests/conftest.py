"""Where the learners of the tests compute, in which order tests run, and no verdict of Hypothesis
on speed."""

from __future__ import annotations

import gc
import os
import sys
from itertools import chain, islice

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported, and for every process that a test starts: threads that spin for a core
# which another worker uses cost three times the processor's time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that may not keep what they compiled compile all of headrace at each start: 0.2 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # nor pytest the tests whose asserts it rewrites
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slow ones first, the slowest before all, and some for each worker: xdist gives each of
    them a part of the list, and one that begins a slow test at the end is waited for."""
    items.sort(key=_seconds, reverse=True)
    slow = sum(_seconds(item) > 0 for item in items)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    parts = [items[:slow][worker::workers] for worker in range(workers)]
    rest = iter(items[slow:])
    for worker, part in enumerate(parts):
        given = sum(map(len, parts[:worker]))
        part.extend(islice(rest, (len(items) - given) // (workers - worker) - len(part)))
    items[:] = [*chain(*parts), *rest]


def pytest_collection_finish() -> None:
    """What is there by now stays: the collector need not go through all the libraries each time,
    which takes a second of a core."""
    gc.collect()
    gc.freeze()


def _seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("slow")
    return 0 if mark is None else mark.args[0] if mark.args else 10


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
