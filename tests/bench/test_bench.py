"""The benchmarks run, and leave figures with what they were measured on; how fast decides
nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench.__main__ import NAMES
from tests.broker import missing_tools

ROOT = Path(__file__).parents[2]
ON_TOPICS = ("kafka", "trickle", "answers", "freshness", "live_swaps", "overhead", "soak")
"""The benchmarks that need a broker."""


def bench(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow(90)
@pytest.mark.timeout(1_800)
def test_every_benchmark_leaves_its_figures(tmp_path: Path) -> None:
    names = [n for n in NAMES if n not in ON_TOPICS or not missing_tools()]
    done = bench(tmp_path, "--quick", *names)
    assert done.returncode == 0, done.stderr
    found = {path.stem for path in (tmp_path / "runs" / "bench").glob("*.json")}
    assert found == {*names, "int8"}
    for name in found:
        made = json.loads((tmp_path / "runs" / "bench" / f"{name}.json").read_text())
        assert made["figures"]
        assert made["goal"]
        assert all(len(rounds) >= 3 for rounds in made["seconds"].values())
        assert {"cpu", "cores", "system"} <= set(made["machine"])
        assert {"python", "polars", "torch"} <= set(made["versions"])
        assert f"{name}: goal" in done.stdout


def test_an_unknown_benchmark_is_the_users_mistake(tmp_path: Path) -> None:
    done = bench(tmp_path, "liner")
    assert done.returncode == 2
    assert "there is no benchmark 'liner': formats, " in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(tmp_path: Path) -> None:
    done = bench(tmp_path, "gpu")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("nothing was run.")
