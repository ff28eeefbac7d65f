"""The bottleneck that `headrace profile` names, and the gain it predicts.

``python -m tests.bench bottleneck``

Five pipelines, each limited by one part that sleeps, so the right answer is known. `headrace
profile` names the part and a setting, and predicts the gain; two longer runs, with and without the
setting, measure it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from engine.commands.profile import profile
from engine.config import Pipeline
from engine.run import Run
from tests.bench.measure import median, report

SLOW = "tests.pipelines.slow"
COMMON: dict[str, Any] = {
    "source": {"kind": f"{SLOW}:Source", "rows": 60_000},
    "loader": {"batch_rows": 200, "read_rows": 1_000},
}
DECODING = {"batch_rows": 4_096, "read_rows": 8_192, "decode_threads": 1}
SCRIPTS: dict[str, dict[str, Any]] = {
    "source": {"source": {"seconds": 0.02, "rows": 80_000}, "loader": {"read_rows": 500}},
    "decode": {"source": {"decode": 4e-6, "rows": 700_000}, "loader": DECODING},
    "scrub": {"scrub": {"sleepy": {"kind": f"{SLOW}:Stage", "seconds": 0.01}}},
    "model": {
        "model": {"kind": f"{SLOW}:Learner", "seconds": 0.01, "target": "y", "numeric": ["a"]}
    },
    "sink": {"sink": {"kind": f"{SLOW}:Sink", "seconds": 0.01}},
}
"""Part -> the tables that make it slow, for a run of three seconds."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/bottleneck.json``."""
    rounds, rows = (3, ("source.rows=4_000",)) if quick else (5, ())
    seconds: dict[str, list[float]] = {}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("model",) if quick else tuple(SCRIPTS):
            result = profile(pipeline(folder, part), seconds=0.2 if quick else 1.5)
            if result.bottleneck is None or not result.trials:
                figures[f"{part}: named"] = "nothing"
                continue
            predicted = result.trials[0]
            for _ in range(rounds):
                for way, overrides in (("as it is", rows), ("advised", (*rows, predicted.setting))):
                    taken = whole_run(pipeline(folder, part, *overrides))
                    seconds.setdefault(f"{part}, {way}", []).append(taken)
            gain = median(seconds[f"{part}, as it is"]) / median(seconds[f"{part}, advised"])
            figures[f"{part}: named"] = result.bottleneck.part
            figures[f"{part}: share of the time"] = result.bottleneck.share
            figures[f"{part}: advised"] = predicted.setting
            figures[f"{part}: gain predicted"] = predicted.gain
            figures[f"{part}: gain predicted / gain"] = predicted.gain / gain
    report(
        "bottleneck", figures, seconds=seconds, goal="each part is named; gains within a quarter"
    )


def pipeline(folder: Path, part: str, *overrides: str) -> Pipeline:
    """The pipeline limited by this part."""
    table: dict[str, Any] = {"name": part, "folder": str(folder / part)}
    for section in COMMON.keys() | SCRIPTS[part].keys():
        table[section] = COMMON.get(section, {}) | SCRIPTS[part].get(section, {})
    return Pipeline.of(table, overrides)


def whole_run(pipeline: Pipeline) -> float:
    """Return the seconds of a run."""
    start = time.perf_counter()
    Run(pipeline).run(fresh=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
