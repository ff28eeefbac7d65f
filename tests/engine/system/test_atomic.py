"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.system import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert atomic.write(tmp_path / "a", "ä\n") == tmp_path / "a"
    atomic.write_parts(tmp_path / "b", [b"one", memoryview(b"two")])
    with atomic.written(tmp_path / "c.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"picture")
        assert not (tmp_path / "c.png").exists()
    assert (tmp_path / "a").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b").read_bytes() == b"onetwo"
    assert (tmp_path / "c.png").read_bytes() == b"picture"
    assert names(tmp_path) == ["a", "b", "c.png"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def torn() -> list[bytes]:
        raise OSError("full")

    for name in ("a", "b"):
        atomic.write(tmp_path / name, "before")
    with pytest.raises(OSError, match="full"):
        atomic.write_parts(tmp_path / "a", (part for part in [b"x", *torn()]))

    def half() -> None:
        with atomic.written(tmp_path / "b") as temporary:
            temporary.write_bytes(b"half")
            torn()

    with pytest.raises(OSError, match="full"):
        half()
    assert names(tmp_path) == ["a", "b"]
    assert {(tmp_path / name).read_text() for name in "ab"} == {"before"}


def test_a_private_file_is_its_owners_whatever_was_there(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        (tmp_path / f"a{atomic.SUFFIX}").write_text("left from before")
        atomic.write(tmp_path / "a", "x", private=True)
        atomic.write(tmp_path / "b", "x")
    finally:
        os.umask(umask)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert modes == {"a": 0o600, "b": 0o666}


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    atomic.write(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "x"
    script = "from pathlib import Path; from engine.system import atomic; "
    script += "atomic.write(Path('/dev/stdout'), 'said')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"said"
    assert Path("/dev/stdout").is_symlink()
