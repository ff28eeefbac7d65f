"""The published benchmark, from a pipeline file: River's Phishing, to four decimals."""

from __future__ import annotations

from pathlib import Path

from engine.run import Run

FILE = Path(__file__).parents[4] / "deploy" / "pipelines" / "phishing.toml"


def test_accuracy_and_f1_are_those_of_river(tmp_path: Path) -> None:
    """StandardScaler and LogisticRegression(SGD(0.005)), row by row, test-then-train."""
    summary = Run(FILE, [f"folder={tmp_path}"]).run()
    whole = summary.report["all"]
    assert (round(whole["accuracy"], 4), round(whole["f1"], 4)) == (0.8872, 0.8712)
    assert summary.totals.learned == summary.totals.read == 1_250
