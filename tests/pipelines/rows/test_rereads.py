"""What a run writes is never its own input: not results, dead letters, checkpoints, reports or
models, by whatever spelling of the paths."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from connectors.files.paths import find_files, would_match
from engine.run import Run
from engine.types import UserError
from tests.pipelines.conftest import Headrace, Rows, Small

PLACES = {
    "sink.path": ("[sink]", ["sink.format=csv"]),
    "dead_letters.path": ("[dead_letters]", []),
    "checkpoint.path": ("[checkpoint] path", []),
    "folder": ("folder", []),
    "export.path": ("[export] path", []),
}
"""A key -> what its sentence calls it, and what is set besides."""


@pytest.mark.parametrize("spelling", ["{d}", "{d}/../data", "{d}/below", "link", "{d}/link"])
@pytest.mark.parametrize("key", PLACES)
def test_what_a_run_writes_into_its_source_is_refused(
    tmp_path: Path, small: Small, rows: Rows, headrace: Headrace, key: str, spelling: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows(50).write_csv(data / "a.csv")
    (tmp_path / "link").symlink_to(data)
    (data / "below").mkdir()
    (data / "link").symlink_to(data / "below")
    place = spelling.format(d=data) if "/" in spelling or "{" in spelling else tmp_path / spelling
    named, besides = PLACES[key]
    place = f"{place}/model.onnx" if key == "export.path" else str(place)
    file = small(data / "**" / "*", more="[export]\n" if key == "export.path" else "")
    before = sorted(tmp_path.rglob("*"))
    words = ("source.format=csv", f"{key}={place}", *besides)
    code, _, err = headrace("run", file, *(word for w in words for word in ("--set", w)))
    assert code == 2, err
    assert f"{named} in {file} writes files such as '{place}" in err
    assert "[source] path leads to them" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_followed_folder(tmp_path: Path, small: Small, rows: Rows, headrace: Headrace) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows(50).write_csv(data / "a.csv")
    file = small(data)
    follow = ["--set", "source.follow=true", "--set", "source.format=csv"]
    into = ["--set", f"sink.path={data}/results", "--set", "sink.format=csv"]
    for command in ("check", "run"):
        code, _, err = headrace(command, file, *follow, *into)
        assert code == 2, err
        assert "[sink]" in err
        assert "they would be read as input" in err
    # Files that the source leaves out are nobody's input.
    Run(file, ["source.format=csv", into[1]]).assemble()


def test_a_model_does_not_replace_the_data(
    tmp_path: Path, small: Small, rows: Rows, headrace: Headrace
) -> None:
    rows(50).write_csv(tmp_path / "a.csv")
    before = (tmp_path / "a.csv").read_bytes()
    file = small(tmp_path / "a.csv", more="[export]\n")
    (tmp_path / "model.csv").symlink_to(tmp_path / "a.csv")
    for name in ("a.csv", "model.csv"):
        code, _, err = headrace("run", file, "--set", f"export.path={tmp_path}/{name}")
        assert code == 2, err
        assert "[export] path" in err
    assert (tmp_path / "a.csv").read_bytes() == before


@pytest.mark.parametrize(
    "path", ["*", "*.csv", "**/*.csv", "**", "b/*", "b/**/*.csv", "?/?.csv", "[ab]/*", "./b/../b/*",
             ".", "b", "b/c.csv", "_notes/*", ".hidden/*", "*/x"],
)  # fmt: skip
@pytest.mark.parametrize("absolute", [True, False])
def test_it_is_known_which_files_a_path_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, absolute: bool
) -> None:
    """As `find_files` finds them, for every file of a tree with notes, hidden files and links."""
    monkeypatch.chdir(tmp_path)
    names = ["a.csv", "b/c.csv", "b/d/e.csv", "b/_note.csv", "_notes/f.csv", ".hidden/g.csv",
             "b/.h.csv", "elsewhere/i.csv"]  # fmt: skip
    for name in names:
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_text(name)
    Path("b/link").symlink_to(tmp_path / "elsewhere")
    given = os.path.join(tmp_path, path) if absolute else path  # noqa: PTH118 - "./" stays
    found = set()
    with contextlib.suppress(UserError):  # nothing is found
        found = {file.resolve() for file in find_files([given]).values()}
    known = {Path(name).resolve() for name in names if would_match([given], Path(name))}
    assert known == found
