"""Batches go to the model's device in the thread that prepares, and that time is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from connectors.memory import MemorySource
from engine import types
from engine.config import LoaderSettings, Pipeline
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.loading.transfer import Transfer, transfer_to, watch_devices
from engine.observing.metrics import Metrics
from engine.run import Run
from engine.running import bottleneck
from engine.running.bottleneck import diagnose
from engine.types import Batch, Features, Learner, Step, Tensors

FRAME = pl.DataFrame(
    {
        "a": np.arange(60.0),
        "i": np.arange(60 * 12, dtype=np.uint16).astype(np.uint8).reshape(60, 2, 2, 3),
        "t": [[i] * (i % 4) for i in range(60)],
        "y": np.arange(60.0),
    }
)
FEATURES = Features(
    numeric=("a",), images={"i": (3, 2, 2)}, ragged={"t": 60}, sparse={"t": 60},
    padded={"t": 60}, max_length=3, target="y",
)  # fmt: skip


def loader(transfer: Callable[[Batch], Batch] | None) -> Loader:
    return Loader(
        MemorySource.of([FRAME]),
        schema=dict(FRAME.schema),
        collate=Collate(FEATURES).apply,
        transfer=transfer,
        settings=LoaderSettings(batch_rows=20, poll_timeout=0.01),
    )


def parts(tensors: Tensors) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def add(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    tensors.map(add)
    return found


def test_every_tensor_is_placed_by_the_thread_that_prepares() -> None:
    threads: list[str] = []
    transfer = Transfer("meta")

    def apply(batch: Batch) -> Batch:
        threads.append(threading.current_thread().name)
        return transfer.apply(batch)

    with loader(apply) as batches:
        for batch in batches:
            here = batch.tensors
            assert here is not None
            assert here.on_device is not None
            there = parts(here.on_device.wait())
            assert len(there) == 11
            assert {t.device.type for t in there} == {"meta"}
            assert {t.device.type for t in parts(here)} == {"cpu"}
            assert [t.shape for t in there] == [t.shape for t in parts(here)]
            assert [t.stride() for t in there] == [t.stride() for t in parts(here)]
        spent = batches.timer.snapshot().stages["transfer"]
    assert spent.calls == len(threads) == 3
    assert threading.current_thread().name not in threads


def test_what_is_made_of_placed_tensors_is_placed_no_more() -> None:
    with loader(Transfer("cpu").apply) as batches:
        batch = next(iter(batches))
    tensors = batch.tensors
    assert tensors is not None
    assert tensors.on_device is not None
    assert torch.equal(tensors.on_device.wait().numeric, tensors.numeric)
    assert tensors.take(np.array([1, 1])).on_device is None
    assert tensors.map(torch.clone).on_device is None


def test_without_a_device_nothing_is_placed_and_nothing_counted() -> None:
    with loader(None) as batches:
        on_device = [batch.tensors.on_device for batch in batches if batch.tensors is not None]
        assert "transfer" not in batches.timer.snapshot().stages
    assert on_device == [None] * 3


class Elsewhere(Learner):
    """A learner whose device is another: it only looks where its tensors are."""

    Settings = types.Settings
    Training = types.Settings
    device = "meta"
    seen: ClassVar[list[str]] = []

    def __init__(
        self, settings: types.Settings, training: types.Settings, features: Features
    ) -> None:
        self.features = features

    def learn(self, batch: Batch) -> Step:
        assert batch.tensors is not None
        assert batch.tensors.on_device is not None
        self.seen.append(batch.tensors.on_device.wait().numeric.device.type)
        return Step(scores=np.zeros(len(batch)), loss=0.0)

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Of no use."""
        return np.zeros(len(tensors))

    def state_dict(self) -> dict[str, Any]:
        """None."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """None."""


def test_a_learners_device_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck, "MIN_ROWS", 1)
    path = tmp_path / "rows.parquet"
    FRAME.select("a", "y").write_parquet(path)
    table: dict[str, Any] = {
        "name": "elsewhere",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(path)},
        "loader": {"batch_rows": 20},
        "model": {"kind": f"{__name__}:Elsewhere", "target": "y", "numeric": ["a"]},
    }
    run = Run(Pipeline.of(table))
    assert run.run().totals.learned == 60
    assert run.learner.seen == ["meta"] * 3  # type: ignore[attr-defined]
    snapshot = run.loop.loader.timer.snapshot()
    assert snapshot.stages["transfer"].calls == 3
    verdict = diagnose(
        replace(snapshot, at=10.0, compiling=0.0), device="meta",
        settings={"batch_rows": 20, "read_rows": 1, "decode_threads": 1, "interval": 1},
    )  # fmt: skip
    assert verdict is not None
    assert verdict.seconds["transfer"] == snapshot.stages["transfer"].wall
    table["model"]["kind"] = "tabular"
    assert Run(Pipeline.of(table)).parts.transfer is None


def test_what_is_held_of_a_gpu_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    metrics = Metrics()
    watch_devices(metrics)
    page = metrics.exposition()[0].decode()
    held = {"allocated": torch.cuda.memory_allocated(0), "reserved": torch.cuda.memory_reserved(0)}
    for kind, nbytes in held.items():  # 0 of each where there is none
        line = f'headrace_device_memory_bytes{{device="cuda:0",kind="{kind}"}} '
        (said,) = (text for text in page.splitlines() if text.startswith(line))
        assert float(said.removeprefix(line)) == nbytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_the_learners_to_refuse() -> None:
    assert transfer_to("cuda") is transfer_to("auto") is transfer_to("cpu") is None
    assert transfer_to("meta") is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_tensors_are_pinned_and_equal() -> None:
    with loader(Transfer("cuda").apply) as batches:
        for batch in batches:
            assert batch.tensors is not None
            assert batch.tensors.on_device is not None
            for here, there in zip(
                parts(batch.tensors), parts(batch.tensors.on_device.wait()), strict=True
            ):
                assert here.is_pinned() or not here.numel()
                assert torch.equal(here, there.cpu())
