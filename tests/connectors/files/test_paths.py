"""What a path leads to, and what is said where it leads to nothing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.files.paths import common_format, find_files
from engine.types import UserError

DROP = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
"""Root that may no longer do everything."""


def test_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    link = tmp_path / "gone.csv"
    link.symlink_to("nowhere.csv")
    with pytest.raises(UserError, match=r"gone.csv' is a link to 'nowhere.csv', which does not"):
        find_files([str(link)])


def test_what_says_no_format_is_left_out_beside_data_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "b.jpg", "README.txt", "LICENSE"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        files = find_files([str(tmp_path)])
    assert [path.name for path in files.values()] == ["a.jpg", "b.jpg"]
    assert common_format(files) == "images"
    (record,) = caplog.records
    assert "2 of 4 files are left out, " in record.getMessage()
    assert f"name them by a pattern ('{tmp_path}/LICENSE')" in record.getMessage()


def test_files_that_all_say_nothing_ask_for_a_format(tmp_path: Path) -> None:
    (tmp_path / "README").touch()
    with pytest.raises(UserError, match="has no extension that says what it holds"):
        common_format(find_files([str(tmp_path)]))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.json", r"a\.json' may hold one object \(json\) or one a line \(ndjson\), .* format to"),
    ],
)
def test_an_extension_that_does_not_tell_says_why(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=says):
        common_format(find_files([str(tmp_path / name)]))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of another user")
def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path: Path) -> None:
    """Its files would be missing without a word."""
    (tmp_path / "a.csv").touch()
    (tmp_path / "closed").mkdir(mode=0o700)
    os.chown(tmp_path / "closed", 65534, 65534)
    script = "import sys; from connectors.files.paths import find_files; find_files(sys.argv[1:])"
    done = subprocess.run(
        [*DROP, sys.executable, "-c", script, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert "UserError: [source] path leads to the folder './closed', which cannot be" in done.stderr


@pytest.mark.parametrize("path", ["9" * 5_000, "a" * 300, "x/" * 3_000])
def test_a_name_that_no_system_takes_is_the_users_mistake(path: str) -> None:
    with pytest.raises(UserError, match=r"\[source\] path '.*' cannot be used: File name too long"):
        find_files([path])
