"""Registers versions in MLflow's model registry, and points its alias to the one that serves (the
only import of mlflow).

The folder of versions stays the truth: MLflow gets a copy of what is there, in a child process with
limits, after the pointer has moved. What fails there is counted and logged, and tried again with
the next version; no engine waits for it or stops.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.config import Pipeline
from engine.errors import HeadraceError, UserError
from engine.observing.logs import hide
from engine.observing.metrics import Metrics
from engine.system import limited_process
from engine.system.limited_process import Limits, ProcessFailed
from engine.versions.store import MODEL_FILE, Versions
from engine.versions.version import Version

log = logging.getLogger("headrace.versions")
SYNC = "engine.versions.registry:sync"
"""The function that the child calls."""
ALIAS = "champion"
"""The alias of the version that serves."""
DIGEST = "headrace.digest"
"""The tag by which a version is found again."""
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow's settings unless they are set."""
LIMITS = Limits(seconds=300.0, memory=8 << 30, allocations=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryJob:
    """What a child registers.

    Attributes:
        folder: of the versions.
        name: of the registered model, and of the experiment with its files.
    """

    folder: str
    name: str


def job_of(pipeline: Pipeline) -> RegistryJob | None:
    """Return what registers the versions that a pipeline publishes; None if nothing is to."""
    if pipeline.registry is None:
        return None
    return RegistryJob(folder=str(pipeline.versions_path), name=pipeline.name)


def require_registry(file: object) -> None:
    """Check that versions can be registered, and keep the registry's secrets out of the log.

    Raises: UserError
    """
    head = f"[export] registry = 'mlflow' in {file} needs"
    if find_spec("mlflow") is None:
        raise UserError(
            f"{head} the package mlflow, which is not installed: pip install 'headrace[mlflow]', "
            "or take the key out."
        )
    if not any(map(os.environ.get, URIS)):
        raise UserError(
            f"{head} the address of a registry: set MLFLOW_TRACKING_URI, such as "
            '"http://localhost:5000", or take the key out.'
        )
    for secret in (
        *(os.environ.get(name) for name in SECRETS),
        *(urlsplit(os.environ.get(name, "")).password for name in URIS),
    ):
        hide(secret or "")


def follow(job: RegistryJob) -> None:
    """Move the alias after the pointer was moved by hand.

    Raises: HeadraceError if the registry does not take it.
    """
    try:
        limited_process.call(SYNC, job, LIMITS)
    except ProcessFailed as error:
        raise HeadraceError(
            f"The pointer has moved, and MLflow's registry does not follow ({error}): its alias "
            f"'{ALIAS}' moves when the command is given again, or a version is published."
        ) from None


def register(
    job: RegistryJob,
    metrics: Metrics,
    *,
    call: Callable[..., Any] | None = None,
    stopped: Callable[[], bool] = limited_process.never,
) -> None:
    """Register the versions that are not registered yet; a failure is counted and logged.

    Args:
        call: runs the child; `limited_process.call` unless given.
        stopped: whether the run has ended meanwhile.
    """
    try:
        (call or limited_process.call)(SYNC, job, LIMITS, stopped=stopped)
    except ProcessFailed as error:
        if not stopped():
            metrics.registry_failures.inc()
            log.warning(
                "MLflow's registry does not have the newest version of %s (%s); the next one tries "
                "again.", job.name, error,
            )  # fmt: skip


def sync(job: RegistryJob) -> None:
    """Register what is not registered of the complete versions, and move the alias. The function of
    a child process. Raises whatever MLflow does."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    versions, client = Versions(Path(job.folder)), MlflowClient()
    if not client.search_registered_models(f"name = '{job.name}'"):
        client.create_registered_model(job.name)
    pointer = versions.pointer.read_or_none()
    for number in versions.whole():
        registered = _registered(client, job, versions, versions.version(number))
        if pointer is not None and number == pointer.number:
            client.set_registered_model_alias(job.name, ALIAS, registered)


def _registered(client: Any, job: RegistryJob, versions: Versions, version: Version) -> str:
    """Return MLflow's number of a version, registered now if it was not."""
    wanted = f"name = '{job.name}' and tags.`{DIGEST}` = '{version.digest}'"
    for found in client.search_model_versions(wanted):
        return str(found.version)
    experiment = client.get_experiment_by_name(job.name)
    place = client.create_experiment(job.name) if experiment is None else experiment.experiment_id
    run = client.create_run(place, run_name=f"version {version.number}")
    run_id = run.info.run_id
    client.log_artifact(run_id, str(versions.model(version.number)), "model")
    client.log_text(run_id, _description(run_id), "model/MLmodel")
    client.set_terminated(run_id)
    tags = {
        DIGEST: version.digest,
        "headrace.version": str(version.number),
        "headrace.model_version": version.model_version,
        "headrace.rows": str(version.rows),
        "headrace.precision": version.precision,
        "headrace.kept_back": version.kept_back,
    }
    made = client.create_model_version(
        job.name,
        f"runs:/{run_id}/model",
        run_id=run_id,
        tags={name: text for name, text in tags.items() if text},
    )
    return str(made.version)


def _description(run_id: str) -> str:
    """Return the file by which `mlflow.onnx.load_model` finds the model."""
    import onnx
    from mlflow.models import Model

    model = Model(artifact_path="model", run_id=run_id)
    model.add_flavor("onnx", onnx_version=onnx.__version__, data=MODEL_FILE)
    return str(model.to_yaml())


__all__ = ["ALIAS", "RegistryJob", "follow", "job_of", "register", "require_registry", "sync"]
