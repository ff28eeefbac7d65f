"""Panels and alerts use only names, labels and values that exist, in words Prometheus takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.observing.metrics import METRICS, MetricSpec
from engine.observing.service import Service
from tests.promtool import promtool

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "headrace.json").read_text())
ADDED = {"instance", "job"}
"""Labels that Prometheus adds."""


def targets(panel: dict[str, Any]) -> Iterator[str]:
    yield from (target["expr"] for target in panel.get("targets", ()))


def expressions() -> list[str]:
    """Of every panel and variable, and the rules file as one."""
    panels = [expr for panel in DASHBOARD["panels"] for expr in targets(panel)]
    variables = [entry.get("definition", "") for entry in DASHBOARD["templating"]["list"]]
    comments = re.compile(r"^\s*(#|action:|summary:).*$", re.MULTILINE)
    rules = comments.sub("", RULES.read_text())
    return [*panels, *variables, *re.split(r"- alert: ", rules)]


def base(name: str) -> str:
    """The declared name of a series: a histogram's three belong to one."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if stem in METRICS and METRICS[stem].kind == "histogram" else name


def selectors(expr: str) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"\b(headrace_[a-z_]+)(?:\{([^}]*)\})?", expr)


def labels_of(entry: MetricSpec) -> set[str]:
    return {*entry.labels, *ADDED, *(["le"] if entry.kind == "histogram" else [])}


@pytest.mark.parametrize("expr", expressions())
def test_every_name_label_and_value_exists(expr: str) -> None:
    used = set()
    for series, matchers in selectors(expr):
        name = base(series)
        assert name in METRICS, f"{series} is not exported"
        entry = METRICS[name]
        assert (series != name) == (entry.kind == "histogram"), f"{series} is no series"
        used |= labels_of(entry)
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', matchers):
            assert label in labels_of(entry), f"{series} has no label {label}"
            known = entry.labels.get(label, ())
            if known and operator in ("=", "!="):
                assert value in known, f"{series} has no {label} {value}"
    for grouping in re.findall(r"(?:by|on) \(([^)]*)\)", expr):
        assert set(re.split(r",\s*", grouping)) <= used
    for query in re.findall(r"label_values\(\w+, (\w+)\)", expr):
        assert query in used


def test_every_legend_names_labels_that_exist() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            existing = set().union(
                *(labels_of(METRICS[base(s)]) for s, _ in selectors(target["expr"]))
            )
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= existing


def test_every_name_is_on_the_dashboard() -> None:
    shown = {base(series) for expr in expressions() for series, _ in selectors(expr)}
    assert shown == set(METRICS)


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        assert panel["type"] == "row" or panel["description"].endswith(".")
        box = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(box["x"], box["x"] + box["w"])
            for y in range(box["y"], box["y"] + box["h"])
        }
        assert not cells & places
        assert max(x for x, _ in cells) < 24
        places |= cells


def test_prometheus_takes_the_configuration() -> None:
    said = promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert "12 rules found" in said
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    defaults = Service.Settings()
    assert f'"{defaults.host}:{defaults.port}"' in config


def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def test_prometheus_takes_every_panel(tmp_path: Path) -> None:
    rules: list[dict[str, str]] = []
    for panel in DASHBOARD["panels"]:
        for expr in targets(panel):
            plain = expr.replace("$__rate_interval", "5m")
            plain = re.sub(r"\$\w+", ".+", plain)
            rules.append({"record": f"panel:{panel['id']}:expr{len(rules)}", "expr": plain})
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))
