"""What every predictor that runs a file has: a session, its provider, a version."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl

from engine.types import Predictor, UserError, nearest
from models.serving.session import (
    PROVIDER_NAMES,
    NotAModel,
    active_provider,
    available_providers,
    load,
)
from models.serving.settings import InferSettings

log = logging.getLogger("headrace.predictor")


def session(path: Path, providers: tuple[str, ...], threads: int | None = None) -> Any:
    """A session; see `models.serving.session.load`. Raises: UserError when the file is no model."""
    try:
        return load(path, providers, threads)
    except NotAModel as error:
        raise UserError(f"{path} cannot be loaded as an ONNX model: {error}.") from None


def require_file(path: Path, sentence: str) -> None:
    """Raises: UserError if there is no such file.

    Args:
        sentence: what it says then, before it names the nearest file.
    """
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.onnx")])
        raise UserError(f"{sentence}{near}")


def require_model(path: Path) -> None:
    """Raises: UserError if [infer] model names no file."""
    require_file(path, f"[infer] model '{path}' is no file: train and export one first.")


class SessionPredictor(Predictor):
    """Runs a file in ONNX Runtime.

    Args:
        digest: of the file and of those that belong to it, in hexadecimal digits.

    Attributes:
        provider: where it really runs.
        metadata: the file's properties.
    """

    def __init__(self, settings: InferSettings, digest: str) -> None:
        self.settings = settings
        usable = available_providers(settings.providers)
        self._session = session(Path(settings.model), usable, settings.threads)
        self.provider = self._check_provider()
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._digest = digest[:12]
        self._version = self.metadata.get("version", self._digest)
        self._tag = pl.Series("model_version", [self._version])

    def info(self) -> dict[str, str]:
        return {
            "version": self._version,
            "precision": self.metadata.get("precision", "float32"),
            "provider": self.provider,
            "digest": self._digest,
        }

    def version(self, rows: int) -> pl.Series:
        """Return the column ``model_version``."""
        return self._tag.new_from_index(0, rows)

    def _check_provider(self) -> str:
        """Report the provider in use. Raises: UserError if it is not the requested one, and
        `strict`."""
        used = active_provider(self._session)
        requested = [PROVIDER_NAMES.get(name, name) for name in self.settings.providers]
        if requested and used != requested[0]:
            sentence = (
                f"[infer] providers asks for {requested[0]}, but the model runs on {used} here"
            )
            if self.settings.strict_provider:
                raise UserError(f"{sentence}: install its libraries, or drop strict_provider.")
            log.warning("%s", sentence)
        return used


__all__ = ["SessionPredictor", "require_file", "require_model", "session"]
