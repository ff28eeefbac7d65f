"""The command as a process of its own, in surroundings that are not made for it."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import engine
from engine.run import Run
from tests.forks import Command
from tests.pipelines.conftest import Headrace, Rows, Small, rows_of, small_in
from tests.waiting import HANG

MOMENTS = 40 if os.environ.get("HEADRACE_CRASH") == "full" else 4
ROOT = Path(engine.__file__).parents[1]
EXPORT = "[export]\nholdout = 0.3\nholdout_rows = 1000\n"
HEADRACE = [sys.executable, "-m", "engine.commands.cli"]


@pytest.fixture
def file(tmp_path: Path, rows: Rows, small: Small) -> Path:
    """A pipeline that trains, exports, compresses and writes."""
    rows(700).write_csv(tmp_path / "data.csv")
    return small(tmp_path / "data.csv", more=EXPORT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after its run, not compressed yet, for commands that go on from there."""
    folder = tmp_path_factory.mktemp("trained")
    rows_of(700).write_csv(folder / "data.csv")
    made = small_in(folder, folder / "data.csv", more=EXPORT)
    Run(made, ["export.compress=false"]).run()
    return made


# ------------------------------------------------------------------------------------------ signals


def armed(process: subprocess.Popen[str]) -> bool:
    """Whether SIGTERM is caught by now, or the process has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return True
    caught = re.search(r"SigCgt:\t(\w+)", status)
    return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def start(file: Path, *, forked: bool = False) -> subprocess.Popen[str]:
    """A run from its start, or from where the libraries are loaded; it is as far as to answer
    signals."""
    words = ["run", "--fresh", str(file), "--log-level", "error"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = Command(words, **pipes) if forked else subprocess.Popen(HEADRACE + words, **pipes)
    while not armed(process):
        time.sleep(0.001)
    return process


@pytest.mark.full
@pytest.mark.slow
def test_a_signal_at_any_moment_ends_as_documented(file: Path, headrace: Headrace) -> None:
    """Imports, opening, learning, export, compression, the table: a line at most, no traceback.
    The first moment is among the imports; what has loaded them is forked for the others."""
    Command(["--version"], stdout=subprocess.DEVNULL).wait()  # the first waits for the imports
    begin = time.monotonic()
    with start(file, forked=True) as process:
        process.communicate()
    whole = time.monotonic() - begin
    rng = random.Random(16)
    for moment in range(MOMENTS):
        number = (signal.SIGINT, signal.SIGTERM)[moment % 2]
        twice = moment % 4 > 1
        with start(file, forked=moment > 0) as process:
            try:  # as far into it as the moment is, of a run that ends by itself
                process.wait(whole * (moment + rng.random()) / MOMENTS)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            if twice:
                time.sleep(0.05)
                process.send_signal(number)
            out, err = process.communicate()
        expected = {0, 128 + number} if twice else {0}
        assert process.returncode in expected, (moment, err)
        assert len(err.splitlines()) <= 1 + twice, (moment, err)
        assert "Traceback" not in out + err
        assert all(line.startswith("headrace: ") for line in err.splitlines())
    assert headrace("run", file)[0] == 0  # whatever they left, it goes on from there


def test_a_signal_before_anything_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    os.mkfifo(file)  # nobody writes it: a run that misses the signal does not end by itself
    with start(file) as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert (process.returncode, len(err.splitlines())) == (0, 1)
    assert err.startswith("headrace: stopped by SIGTERM")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("check", "{file}"),
        ("explore", "{data}"),
        ("profile", "{file}", "--seconds", "1"),
        ("interpret", "{file}"),
        ("export", "{file}", "--to", "{file}.onnx"),
        ("compress", "{file}"),
        ("predict", "{run}/model.onnx", "--input", "{data}", "--output", "{run}/scored"),
        ("folds", "{file}", "--folds", "2"),
        ("reference", "--markdown"),
    ],
    ids=lambda words: words[0],
)
def test_a_signal_at_any_moment_of_every_command(
    file: Path, request: pytest.FixtureRequest, words: tuple[str, ...]
) -> None:
    """One line that promises nothing: these go on from nowhere. The first moment is among the
    imports; what has loaded them is forked for the others."""
    rng = random.Random(words[0])
    if words[0] in ("interpret", "export", "compress", "predict"):
        file = request.getfixturevalue("trained")
    places = {"file": file, "data": file.with_name("data.csv"), "run": file.with_name("run")}
    for moment in range(MOMENTS // 2):
        number = (signal.SIGINT, signal.SIGTERM)[moment % 2]
        command = [*(w.format(**places) for w in words), "--log-level", "error"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun = (
            Command(command, **pipes) if moment else subprocess.Popen(HEADRACE + command, **pipes)
        )
        with begun as process:
            while not armed(process):
                time.sleep(0.001)
            try:  # as far into it as the moment is, of a command that ends by itself
                process.wait(4 * (moment + rng.random()) / MOMENTS)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            out, err = process.communicate()
        assert process.returncode == 0, (moment, err)
        assert "Traceback" not in out + err
        assert err in ("", f"headrace: stopped by {number.name} before it was done.\n")


SWALLOWED = """
import signal, sys
from engine.system import signals
signals.install()
class Callback:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        for _ in range(10):
            pass
with signals.handling(signals.stop):
    del [Callback()][0]
    print("went on")
"""


EARLY = """
import signal
from engine.commands import cli
from engine.system import signals
installed = signals.install
def install():
    installed()
    signal.raise_signal(signal.SIGTERM)
signals.install = install
raise SystemExit(cli.main())
"""


def test_a_signal_before_anybody_can_answer_is_answered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, "reference"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "headrace: stopped by SIGTERM before it was done.\n"


def test_where_an_exception_is_dropped_the_signal_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("headrace: stopped by SIGTERM")


WAITING = """
name = "waiting"
folder = "{folder}"
[source]
kind = "kafka"
topics = ["none"]
bootstrap_servers = "127.0.0.1:{port}"
[source.schema]
a = "float64"
[sink]
kind = "files"
path = "{folder}/out"
"""


def test_a_signal_while_a_broker_is_awaited_ends_with_0(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        file = tmp_path / "waiting.toml"
        file.write_text(WAITING.format(folder=tmp_path / "run", port=silent.getsockname()[1]))
        with start(file) as process:
            silent.settimeout(HANG)
            silent.accept()
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate()
    assert process.returncode == 0, err
    assert "Traceback" not in err


# ------------------------------------------------------------------------------------- surroundings


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """The packages in a folder that nobody may write to, without what was compiled."""
    code = tmp_path / "code"
    for name in ("engine", "connectors", "models"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (code, *(path for path in code.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    return code


HARDENED = """
import sys
from engine import environment
from engine.errors import UserError
try:
    print(*environment.remarks(), sep="; ")
except UserError as error:
    sys.exit(str(error))
import engine.columnar.kernels, connectors.formats.kernels.varints
"""


@pytest.mark.parametrize("temporary", [True, False])
def test_read_only_code_without_a_home(read_only: Path, tmp_path: Path, temporary: bool) -> None:
    """Loops are compiled in a folder of the process's own; where there is none, that is said."""
    mine = tmp_path / "tmp"
    mine.mkdir(mode=0o755 if temporary else 0o555)
    drop = ["setpriv", "--bounding-set", "-dac_override", "--"] if os.geteuid() == 0 else []
    keep = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment = {**keep, "HOME": "/proc", "PYTHONPATH": str(read_only), "TMPDIR": str(mine)}
    script = HARDENED
    if not temporary:  # what Python falls back to by itself
        script = "import tempfile; tempfile._get_default_tempdir = lambda: '/proc'\n" + script
    done = subprocess.run(
        [*drop, sys.executable, "-c", script],
        env=environment,
        cwd=read_only,
        capture_output=True,
        text=True,
    )
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in done.stdout + done.stderr
    assert done.returncode == (0 if temporary else 1), done.stderr
    assert "Traceback" not in done.stderr
    assert list(mine.iterdir()) == []


def test_too_few_addresses_are_a_sentence() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))

    done = subprocess.run(
        [*HEADRACE, "run", "x.toml"], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "'ulimit -v' allows 0.5 GiB of addresses" in done.stderr
    assert "headrace: There is no room for the libraries" in done.stderr.splitlines()[-1]


def test_too_few_open_files_are_a_sentence() -> None:
    done = subprocess.run(
        [*HEADRACE, "run", "x.toml"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "headrace: 'ulimit -n' allows 8 open files: expected 64 at the least; raise it (systemd: "
        "LimitNOFILE).\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of another user")
def test_a_home_that_cannot_be_reached_is_no_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    keep = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"]
    script = "from engine import environment as e; print(e._writable(e._home() / 'numba'))"
    done = subprocess.run(
        [*drop, sys.executable, "-c", script],
        env={**keep, "HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_standard_output_that_is_not_utf_8_shows_what_it_can(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "d.csv"
    file.write_text("a,n\u00e4me\u2713\n1,2\n3,4\n5,6\n", encoding="utf-8")
    done = subprocess.run(
        [*HEADRACE, "explore", str(file)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        encoding=encoding,
    )
    assert done.returncode == 0, done.stderr
    assert "me\\u2713" in done.stdout


@pytest.mark.parametrize("words", ["--help", "run --help", "--version", "schema", "reference"])
def test_standard_output_that_takes_nothing_is_a_sentence(words: str) -> None:
    with Path("/dev/full").open("w") as full:
        pipes: dict[str, Any] = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        # What the parser prints comes before any library, what commands print after them.
        begun = (
            subprocess.Popen([*HEADRACE, *words.split()], **pipes)
            if "-" in words
            else Command(words.split(), **pipes)
        )
        with begun as process:
            _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith("headrace: Standard output cannot be written: No space left on device")
    assert len(err.splitlines()) == 1


def test_version_and_help_load_no_library() -> None:
    script = "import sys; from engine.commands.cli import main\ntry: main([sys.argv[1]])\n"
    script += "except SystemExit: pass\nprint(*sys.modules)"
    for word in ("--version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", script, word], capture_output=True, text=True, check=True
        )
        loaded = set(done.stdout.splitlines()[-1].split())
        assert "engine.commands.cli" in loaded
        assert not loaded & {"torch", "polars", "numpy", "pydantic", "rich", "onnxruntime"}


def test_code_of_the_users_that_exits_ends_no_run_well(
    file: Path, headrace: Headrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leaving.py").write_text(
        "import sys\nfrom tests.pipelines.slow import Stage\n"
        "class Leave(Stage):\n"
        "    class Settings(Stage.Settings):\n        seconds: float = 0\n"
        "    def apply(self, batch):\n        sys.exit(0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text(file.read_text() + '[scrub.leave]\nkind = "leaving:Leave"\n')
    code, _, err = headrace("run", file)
    assert code == 1
    assert "called sys.exit(0) (leaving.py:7), which ends no run" in err.splitlines()[-1]


# ------------------------------------------------------------------------- what nobody was told of


@pytest.mark.full
@pytest.mark.slow
def test_no_socket_and_no_file_that_nobody_asked_for(
    file: Path, tmp_path: Path, results: Callable[[], pl.DataFrame]
) -> None:
    """Trains, exports and compresses under ``python -O`` with all three standard streams closed: no
    library calls home, none writes elsewhere than into the pipeline's folder, caches and temporary
    folders; torch's compiler, two seconds of a start, is not loaded."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    strace = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=network,openat"]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [sys.executable, "-O", "-m", "engine.commands.cli", "run", str(file)]
    seen = strace if shutil.which("strace") else []
    done = subprocess.run([*seen, *shell, *command], env={**keep, "HOME": str(home)}, timeout=HANG)
    assert done.returncode == 0
    assert results().height > 0
    assert (tmp_path / "run" / "model.onnx").stat().st_size > 0
    if not seen:
        pytest.skip("what it opens is not seen without strace")
    lines = trace.read_text(errors="replace").splitlines()
    assert any("openat" in line and "data.csv" in line for line in lines)
    assert not any("torch/_dynamo/" in line for line in lines)
    asked = re.compile(r"\b(connect|sendto|sendmsg|bind|listen)\(")
    assert [line for line in lines if asked.search(line) and "AF_UNIX" not in line] == []
    written = re.compile(r'openat\([^"]*"([^"]+)".*O_CREAT')
    opened = {match[1] for line in lines if (match := written.search(line)) and "= -1" not in line}
    ours = rf"{tmp_path}/(run|out)/|{home}/\.(cache|config)/|/__pycache__/|^/dev/|^/tmp/"
    allowed = re.compile(ours + "|^/var/lib/libuuid/")  # the clock of numba's unique names
    assert [name for name in sorted(opened) if not allowed.search(name)] == []
    kept = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert kept <= {(".cache", "matplotlib"), (".cache", "numba")}, kept
