"""The main figure of a report, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def figure(group: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key and name of the main metric of a group of an evaluation's report."""
    return ("mae", "MAE") if "mae" in group else ("accuracy", "accuracy")


def headline(report: Mapping[str, Any]) -> str:
    """Return one line for a progress bar; empty before the first row."""
    window = report.get("window", {})
    if not window:
        return ""
    key, name = figure(window)
    best = best_baseline(window)
    beside = f" ({best}: {window['baselines'][best][key]:.4g})" if best else ""
    return f"newest rows: {name} {window[key]:.4g}{beside}"


def best_baseline(group: Mapping[str, Any]) -> str | None:
    """Return the name of the group's best baseline."""
    key, _ = figure(group)
    baselines = group.get("baselines", {})
    if not baselines:
        return None
    choose = min if key == "mae" else max
    return str(choose(baselines, key=lambda name: baselines[name][key]))
