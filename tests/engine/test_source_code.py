"""What holds for every line of the packages, whatever it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine

ROOT = Path(engine.__file__).parents[1]
FILES = [
    path for name in ("engine", "connectors", "models") for path in (ROOT / name).rglob("*.py")
]
PURE = {"all", "any", "callable", "isinstance", "issubclass", "len", "list", "max", "min", "set"}
"""What an assert may call."""
WRITES = {"write_text", "write_bytes", "savefig", "fsync"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in FILES:
        yield path, ast.parse(path.read_text())


def lazy() -> set[str]:
    """Names whose first look makes something."""
    return {
        node.name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(d).endswith("cached_property") for d in node.decorator_list)
    }


def effects(node: ast.expr, makes: set[str]) -> Iterator[str]:
    """What of an expression may do more than look."""
    for part in ast.walk(node):
        if isinstance(part, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
            yield ast.unparse(part)
        if isinstance(part, ast.Call) and ast.unparse(part.func) not in PURE:
            yield ast.unparse(part)
        if isinstance(part, ast.Attribute) and part.attr in makes:
            yield ast.unparse(part)


@pytest.mark.full
def test_without_its_asserts_the_code_does_the_same() -> None:
    """``python -O`` takes them away."""
    makes = lazy()
    assert {"stages", "learner", "source"} <= makes
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {what}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for what in effects(node.test, makes)
    ]
    assert not found, found


BY_THEMSELVES = {
    (
        "engine/quality/error_plot.py",
        "draw(history, title=title, theme=theme).savefig",
    ),  # inside `atomic.written`
    (
        "engine/system/limited_process.py",
        "argument_file.write_bytes",
    ),  # what a child process gets, in a temporary folder that goes with it
}


def test_files_are_written_in_one_place() -> None:
    found = {
        (str(path.relative_to(ROOT)), ast.unparse(node))
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in WRITES and path.name != "atomic.py"
    }
    assert found == BY_THEMSELVES
