"""A loader over any source goes on where its state says, to the digit: at the start, in the middle,
at the end; with rows in order or shuffled, read again, shared or mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.files.readers import text, xml
from connectors.files.source import FilesSource
from engine.config import LoaderSettings
from engine.loading.loader import Loader
from engine.loading.rebatch import RebatchNode
from engine.loading.sources.mix import Mix
from engine.types import Source
from tests.connectors.conftest import ROWS, SCHEMA, SOURCES, N
from tests.waiting import HANG

Make = Callable[[Path], Source]


def files(**own: Any) -> Make:
    def make(folder: Path) -> Source:
        for i, start in enumerate(range(0, N, 20)):
            ROWS.slice(start, 20).write_parquet(folder / f"{i}.parquet", row_group_size=6)
        return FilesSource(FilesSource.Settings(path=str(folder / "*.parquet"), **own))

    return make


def mixed(folder: Path) -> Source:
    (folder / "again").mkdir(exist_ok=True)
    sources = {
        "again": (files(epochs=2, shuffle_files=True)(folder / "again"), 2.0),
        "lines": (SOURCES["ndjson"](folder), 1.0),
        "memory": (SOURCES["memory"](folder), 0.5),
    }
    return Mix(Mix.Settings(rows_per_turn=5), sources)


CASES: dict[str, Make] = {
    **SOURCES,
    "epochs": files(epochs=3),
    "epochs, files shuffled": files(epochs=3, shuffle_files=True),
    "a shard": files(shard=1, shards=3, epochs=2),
    "mix": mixed,
}
ROWS_OF = {"epochs": 3 * N, "epochs, files shuffled": 3 * N, "mix": 4 * N}


@pytest.fixture(params=[0, 17], ids=["in order", "shuffled"])
def shuffle_rows(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_to_the_digit(
    case: str, shuffle_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK", 64)
    monkeypatch.setattr(xml, "BLOCK", 100)
    monkeypatch.setattr(RebatchNode, "idle", HANG)  # where a busy machine rests, no batch comes
    settings = LoaderSettings(batch_rows=8, shuffle_rows=shuffle_rows, shuffle_seed=3)

    def loader() -> Loader:
        source = CASES[case](tmp_path)
        return Loader(source, schema=source.schema(SCHEMA), settings=settings)

    states, expected = [], []
    with loader() as whole:
        states.append(whole.state_dict())
        for batch in whole:
            if len(batch):  # one without rows says that the source keeps it waiting
                expected.append(batch.frame.rows())
                states.append(whole.state_dict())
    rows = sum(map(len, expected))
    assert rows == ROWS_OF.get(case, N) or case == "a shard"
    for done in sorted({0, 1, len(expected) // 2, len(expected) - 1, len(expected)}):
        with loader() as again:
            again.load_state_dict(states[done])
            assert [batch.frame.rows() for batch in again if len(batch)] == expected[done:]
