"""Dead letters in a topic, as far as no broker is needed to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import Pipeline, Run, UserError

TOPIC = {"kind": "kafka", "bootstrap_servers": "localhost:1", "topic": "letters"}


def _run(tmp_path: Path, source: dict[str, Any], *, replay: bool = False, **tables: Any) -> Run:
    table = {"name": "topics", "folder": str(tmp_path), "source": source, "dead_letters": TOPIC}
    return Run(Pipeline.of({**table, **tables}), replay=replay)


@pytest.mark.parametrize("once", [False, True])
def test_letters_are_in_the_transaction_of_their_sink(tmp_path: Path, once: bool) -> None:
    source = {"kind": "kafka", "bootstrap_servers": "localhost:1", "topics": "in", "group_id": "g"}
    sink = {"kind": "kafka", "bootstrap_servers": "localhost:1", "topic": "out"}
    run = _run(tmp_path, source, sink={**sink, "exactly_once": once})
    letters: Any = run.parts.endpoints.dead_letters
    results: Any = run.sink
    assert (letters.delivery is results.delivery) == once


def test_letters_in_a_topic_are_not_for_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    run = _run(tmp_path, {"kind": "files", "path": str(tmp_path / "*.csv")}, replay=True)
    with pytest.raises(UserError, match="'kafka' cannot be replayed into a source of kind 'files'"):
        _ = run.source
