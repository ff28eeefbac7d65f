"""What a running pipeline shows on its page: its outline, the account of its rows, rejected rows
where they may be seen, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from pydantic import SecretStr

from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from tests.pipelines import slow
from tests.pipelines.conftest import Rows, Small
from tests.waiting import HANG


class Vault(slow.Source):
    """A source of one's own, whose address and token are secret."""

    class Settings(slow.Source.Settings):
        path: str = "db://reader:hunter2@db.example/rows"
        topics: tuple[str, ...] = ("a", "b")
        token: str = "plain-token"
        password: SecretStr = SecretStr("s3cret")


def status(pipeline: Path, *overrides: str, after: int = 500) -> dict[str, Any]:
    """Run it, and return what its page was told in the middle."""
    seen: list[dict[str, Any]] = []

    def look(loop: Loop, batch: Batch) -> None:
        if not seen and loop.totals.read >= after:
            url = f"{run.parts.service.url}/status.json"
            seen.append(httpx.get(url, timeout=HANG, trust_env=False, verify=False).json())

    run = Run(pipeline, ["service.port=0", *overrides], watch=look)
    run.run()
    return seen[0]


@pytest.fixture
def file(rows: Rows, small: Small, tmp_path: Path) -> Path:
    """The small pipeline, whose tenth row has a word for a number."""
    data = rows(1_000).with_columns(pl.col("b").cast(pl.String))
    wrong = pl.when(pl.int_range(pl.len()) == 9).then(pl.lit("many")).otherwise(pl.col("b"))
    data.with_columns(b=wrong).write_csv(tmp_path / "data.csv")
    return small(tmp_path / "data.csv")


def test_the_page_tells_of_a_run_what_the_run_knows(file: Path, tmp_path: Path) -> None:
    seen = status(file)
    outline, metrics = seen["outline"], seen["metrics"]
    assert (outline["name"], outline["work"]) == ("small", "learns")
    assert outline["stages"] == ["missing", "standardize", "categories"]
    assert "duplicate" in outline["expected_rejects"]
    assert outline["model"] == {"kind": None, "task": "regression", "target": "y"}
    assert outline["endpoints"]["source"] == {"kind": "files", "path": str(tmp_path / "data.csv")}
    assert outline["endpoints"]["sink"]["kind"] == "files"
    assert seen["lag_units"] == {str(tmp_path / "data.csv"): "bytes"}
    assert outline["checkpoints"].endswith("checkpoints")
    assert seen["live"]["ok"]
    assert metrics["up"] == 1
    rejected = sum(metrics["rejected_records"]["value"])
    assert metrics["source_records"] == metrics["learned_records"] + rejected >= 500
    (row,) = seen["samples"]
    assert (row["stage"], row["reason"]) == ("decode", "wrong_type")
    assert "many" in row["value"]


@pytest.mark.parametrize("table", ["checkpoint", "sink", "dead_letters"])
def test_rows_that_are_private_are_not_on_the_page(file: Path, table: str) -> None:
    assert status(file, f"{table}.private=true")["samples"] is None


def test_private_rows_are_on_the_page_where_the_file_says_so(file: Path) -> None:
    assert status(file, "sink.private=true", "service.samples=true")["samples"]


def test_no_secret_is_on_the_page(tmp_path: Path) -> None:
    pipeline = tmp_path / "vault.toml"
    pipeline.write_text(
        f'name = "vault"\nfolder = "{tmp_path / "run"}"\n[source]\n'
        f'kind = "{__name__}:Vault"\nrows = 2000\n[loader]\nbatch_rows = 100\n'
        f'[model]\nkind = "linear"\ntarget = "y"\nnumeric = ["a"]\n[service]\n'
    )
    seen = status(pipeline)
    source = seen["outline"]["endpoints"]["source"]
    assert source["path"] == "db://***@db.example/rows"
    assert source["topics"] == "a, b"
    for secret in ("hunter2", "plain-token", "s3cret"):
        assert secret not in json.dumps(seen)
