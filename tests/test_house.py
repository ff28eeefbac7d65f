"""The house stands as its READMEs say: who imports what, what is where, what a clone may hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("kafka", "onnxruntime", "onnx", "river", "matplotlib", "connectors", "models")


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_import_engine_loads_no_broker_client_and_no_runtime() -> None:
    code = f"import sys, engine; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("folder", ["engine", "connectors", "models"])
def test_a_folders_readme_names_every_file(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    for path in (ROOT / folder).iterdir():
        if path.name.startswith("_") or path.suffix not in (".py", ""):
            continue
        assert re.search(rf"\b{re.escape(path.name)}\b", text), f"{folder}/README.md: {path.name}"


@pytest.mark.parametrize("folder", ["engine", "connectors", "models", "tests", "deploy"])
def test_a_folders_readme_names_no_file_that_is_gone(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    names = set(re.findall(r"[\w./-]+\.(?:py|toml|yml|json)\b", text))
    assert names or folder == "tests"
    gone = [n for n in names if not (ROOT / folder / n).exists() and not (ROOT / n).exists()]
    assert gone == []


def test_a_class_name_means_one_thing() -> None:
    """But `Settings`, which every component has."""
    files: dict[str, list[str]] = {}
    for folder in ("engine", "connectors", "models"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE):
                files.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {n: at for n, at in files.items() if len(at) > 1 and n != "Settings"} == {}


def test_the_top_level_is_the_card() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {name.partition("/")[0] for name in listed}
    assert top <= {
        "engine", "connectors", "models", "deploy", "tests", "README.md", "CHANGELOG.md",
        "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", ".pre-commit-config.yaml",
        ".gitignore", ".ci",
    }  # fmt: skip
