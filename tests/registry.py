"""A real schema registry of one's own: Apicurio, resolved by Maven, with Confluent's API."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.broker import free_ports, missing_tools, skip_without_tools
from tests.java import CACHE, LIGHT, classes
from tests.server import Server

POM = Path(__file__).parents[1] / "deploy" / "registry" / "pom.xml"
VERSION = "2.6.13.Final"


class SchemaRegistry(Server):
    """One registry; see `Server`. Its database is a file, which a kill may leave without the last
    half second.

    Attributes:
        url: where clients find Confluent's API.
    """

    title = "schema registry"

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        super().__init__(folder)
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"
        self._home = _unpacked()
        self._options = options or classes(f"apicurio-{VERSION}", SchemaRegistry)

    def start(self) -> Self:
        """Run it, and return when it answers."""
        # "In memory" is an H2 database, and that may as well be a file.
        database = f"-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{self.folder / 'data'}"
        environment = {**os.environ, "REGISTRY_STORAGE_KIND": "mem"}
        command = ["java", "-Xmx384m", *LIGHT, *self._options]
        command += ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={self._port}"]
        command += [database, "-jar", str(next(self._home.glob("*-runner.jar")))]
        self._run(command, cwd=self._home, env=environment)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


class There(SchemaRegistry):
    """One that somebody else runs, at SCHEMA_REGISTRY_URL."""

    def __init__(self, url: str) -> None:
        self.url = url


@functools.cache
def shared_registry() -> SchemaRegistry:
    """One for all tests of this process, started by the first that asks, gone with the process; or
    the one at SCHEMA_REGISTRY_URL. What it needs must be there on CI, and is a reason to skip a
    test elsewhere."""
    if there := os.environ.get("SCHEMA_REGISTRY_URL"):
        return There(there)
    made = own_registry(Path(tempfile.mkdtemp(prefix="headrace-registry-")))
    atexit.register(shutil.rmtree, made.folder, ignore_errors=True)
    atexit.register(made.kill)  # first, then the folder goes
    return made.start()


def own_registry(folder: Path) -> SchemaRegistry:
    """One that the test alone uses, not started yet."""
    skip_without_tools()
    return SchemaRegistry(folder)


def _unpacked() -> Path:
    """The registry's jars, resolved once a machine (142 MB)."""
    if missing := missing_tools():
        raise RuntimeError(
            f"A schema registry needs {' and '.join(missing)}: install Java 17 or newer and Maven "
            "(Debian: default-jre-headless, maven), or set SCHEMA_REGISTRY_URL."
        )
    folder = CACHE / f"apicurio-{VERSION}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            subprocess.run([*command, f"-DoutputDirectory={made}"], check=True)
            (packed,) = Path(made).glob("*.tar.gz")
            with tarfile.open(packed) as archive:
                archive.extractall(f"{made}/registry", filter="data")
            if not folder.is_dir():  # or another process was faster
                (Path(made) / "registry").rename(folder)
    return folder
