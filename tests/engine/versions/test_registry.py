"""MLflow's registry follows the folder of versions, and its failures harm no engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from engine.observing.metrics import Metrics
from engine.system.limited_process import ProcessFailed
from engine.versions.registry import ALIAS, ENVIRONMENT, SYNC, RegistryJob, register, sync
from engine.versions.store import Versions
from engine.versions.version import Details


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    """Two versions, the second serves."""
    versions = Versions(tmp_path / "versions")
    for n in (1, 2):
        publish(versions, n)
    return versions


def publish(versions: Versions, n: int, **details: Any) -> None:
    model = versions.folder.parent / "model.onnx"
    model.write_text(f"model {n}")
    versions.publish(model, Details(model_version=f"v{n}", rows=100 * n, **details), keep=5)


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_the_registry_has_what_the_folder_has(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version once, with its model file; the alias is where the pointer is."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    job = RegistryJob(folder=str(versions.folder), name="fraud")
    client = mlflow.MlflowClient()

    def champion() -> str:
        sync(job)
        return str(client.get_model_version_by_alias("fraud", ALIAS).tags["headrace.version"])

    assert champion() == "2"
    versions.promote(1)
    assert champion() == "1"
    publish(versions, 3, kept_back="it is worse")
    assert champion() == "1"  # held
    versions.promote()
    assert champion() == "3"
    found = client.search_model_versions("name = 'fraud'")
    assert sorted(made.tags["headrace.version"] for made in found) == ["1", "2", "3"]
    (third,) = [made for made in found if made.tags["headrace.version"] == "3"]
    assert third.tags["headrace.rows"] == "300"
    assert third.tags["headrace.kept_back"] == "it is worse"
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/fraud@{ALIAS}"))
    assert (folder / "model.onnx").read_text() == "model 3"
    assert "onnx:" in (folder / "MLmodel").read_text()


def test_a_failure_is_counted_and_told(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(function: str, *_: Any, **__: Any) -> None:
        assert function == SYNC
        raise ProcessFailed("hung: no progress for 60 s")

    metrics, job = Metrics(), RegistryJob(folder=str(versions.folder), name="fraud")
    with caplog.at_level(logging.WARNING):
        register(job, metrics, call=fail)
    assert metrics.registry_failures._value.get() == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert "does not have the newest version of fraud (hung: no progress for 60 s)" in said
    register(job, metrics, call=fail, stopped=lambda: True)  # the run has ended
    assert metrics.registry_failures._value.get() == 1
