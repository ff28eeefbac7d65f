"""How soon an engine is ready, and what it weighs: `--version`, cleaning, serving, training.

``python -m tests.bench start``

Each start is a process of its own, as a user's is: the command, a pipeline file, and a files source
that writes down what the process has cost when it is asked for its first rows. By then everything
is imported, made and bound. Wall seconds count from the start of the process; memory is resident,
and private is what no other process shares. The floor is a process that imports polars, pyarrow and
numba alone: no engine that uses them is lighter.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from connectors.files.source import FilesSource
from engine.types import Records
from tests.bench.measure import report

STARTED, WRITTEN = "BENCH_START_STARTED", "BENCH_START_WRITTEN"
HEAVY = ("torch", "torchdata", "onnx", "onnxruntime", "sklearn", "matplotlib", "starlette")
ROWS = 64
ROOT = Path(__file__).parents[3]

PIPELINE = """
name = "{name}"
folder = "{folder}"
[source]
kind = "{kind}"
path = "{folder}/rows.csv"
[source.schema]
a = "float64"
b = "float64"
y = "float64"
"""
STANDARDIZE = '[scrub.standardize]\ncolumns = ["a", "b"]\n'
SINK = '[sink]\nkind = "files"\npath = "{folder}/{name}"\n'
TRAIN = (
    '[model]\ntarget = "y"\nnumeric = ["a", "b"]\nlayers = [8]\n'
    '[train]\nthreads = 1\n[export]\npath = "{folder}/model.onnx"\n'
)
ENGINES = {
    "train": STANDARDIZE + TRAIN,
    "clean": STANDARDIZE + SINK,
    "serve": '[infer]\nmodel = "{folder}/model.onnx"\n' + SINK,
}
FLOOR = f"import numba, numpy, polars, pyarrow; from {__name__} import write; write()"


class Watched(FilesSource):
    """The files source, which writes down what its process has cost before its first rows."""

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        write()
        return super().read(max_rows, max_bytes, timeout)


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/start.json``."""
    rounds = 3 if quick else 15
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = [f"{n % 7},{n % 5},{n % 3}" for n in range(ROWS)]
        (folder / "rows.csv").write_text("\n".join(["a,b,y", *lines]) + "\n", encoding="utf-8")
        commands = {"version": ["--version"], "help": ["--help"]}
        for name, sections in ENGINES.items():
            kind = f"{__name__}:{Watched.__name__}"
            text = (PIPELINE + sections).format(name=name, folder=folder, kind=kind)
            (folder / f"{name}.toml").write_text(text, encoding="utf-8")
            commands[name] = ["run", "--fresh", str(folder / f"{name}.toml")]
        headrace = [str(Path(sys.executable).with_name("headrace"))]
        starts = {name: [*headrace, *words] for name, words in commands.items()}
        starts["floor"] = [sys.executable, "-c", FLOOR]
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in starts}
        for turn in range(rounds if quick else rounds + 1):
            for name, command in starts.items():
                cost = started(command, folder)
                if turn or quick:
                    seen[name].append(cost)
    figures: dict[str, object] = {}
    for name, costs in seen.items():
        for key in costs[0]:
            figures[f"{name}: {key}"] = median(cost[key] for cost in costs)
    seconds = {
        f"{name}: wall": [cost["ready, s"] for cost in costs] for name, costs in seen.items()
    }
    goal = "--version in 0.3 s; cleaning and serving ready in 1 s and below 300 MiB"
    report("start", figures, seconds=seconds, goal=goal)


def started(command: list[str], folder: Path) -> dict[str, float]:
    """What one start has cost: by its own account, or by its end where it gives none."""
    written = folder / "written.json"
    written.unlink(missing_ok=True)
    start = time.monotonic()
    # The command finds `Watched` from wherever it is installed.
    environment = os.environ | {STARTED: str(start), WRITTEN: str(written), "PYTHONPATH": str(ROOT)}
    # An installation has its modules compiled; here the first start compiles them.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    ended = time.monotonic() - start
    if not written.exists():
        return {"ready, s": ended}
    cost: dict[str, float] = json.loads(written.read_text(encoding="utf-8"))
    return cost


def write() -> None:
    """Write this process's cost so far where the benchmark looks for it, once."""
    path = Path(os.environ[WRITTEN])
    if path.exists():
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    memory = _memory()
    cost = {
        "ready, s": time.monotonic() - float(os.environ[STARTED]),
        "CPU, s": used.ru_utime + used.ru_stime,
        "resident, MiB": memory["Rss"],
        "private, MiB": sum(value for key, value in memory.items() if key.startswith("Private_")),
        **{f"imports {name}": 1.0 for name in HEAVY if name in sys.modules},
    }
    path.write_text(json.dumps(cost), encoding="utf-8")


def _memory() -> Mapping[str, float]:
    """This process's memory by kind, in MiB, as the kernel counts it."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    pairs = (line.split()[:2] for line in lines)
    return {key.removesuffix(":"): int(kib) / 1024 for key, kib in pairs}
