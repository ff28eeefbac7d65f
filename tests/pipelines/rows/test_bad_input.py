"""Bad input, a row each: the sentence it gets and its exit code, or its dead letter; and the run's
account still balances."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.running.totals import Totals
from tests.pipelines.conftest import Headrace, Rows, Small
from tests.waiting import HANG

Change = tuple[str, str]


@pytest.fixture
def refused(headrace: Headrace) -> Callable[..., str]:
    """Runs a file that cannot run: the one sentence it ends with."""

    def run(file: Path, *, code: int) -> str:
        got, out, err = headrace("run", file, "--log-level", "error")
        assert got == code, err
        assert out == ""
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("headrace: ")]
        assert line.endswith((".", "?"))
        return line

    return run


@pytest.fixture
def kept_going(
    headrace: Headrace,
    letters: Callable[[], pl.DataFrame],
    totals: Callable[[Path], Totals],
) -> Callable[[Path], tuple[pl.DataFrame, Totals]]:
    """Runs a file to its end: its dead letters and its account, which balance."""

    def run(file: Path) -> tuple[pl.DataFrame, Totals]:
        code, _, err = headrace("run", file)
        assert code == 0, err
        account = totals(file)
        assert account.balanced
        found = letters()
        assert found.height == account.rejected
        return found, account

    return run


# ---------------------------------------------------------------------------------- the file's keys


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("folder =", "foldr ="), "has no key 'foldr'. Did you mean 'folder'?"),
        (("batch_rows", "batch_row"), "has no key 'batch_row'. Did you mean 'batch_rows'?"),
        (('"files"\npath', '"files"\npaht'), "has no key 'paht'. Did you mean 'path'?"),
        (("strategy", "stratgy"), "has no key 'stratgy'. Did you mean 'strategy'?"),
        (("optimizer", "optimiser"), "has no key 'optimiser'. Did you mean 'optimizer'?"),
        (("layers", "layer"), "has no key 'layer'. Did you mean 'layers'?"),
        (("[train]", "[trian]"), "has no key 'trian'. Did you mean 'train'?"),
        (('"files"', '"filse"'), "[source] has no kind 'filse'. Did you mean 'files'?"),
        (("[scrub.missing]", "[scrub.mising]"), "no kind 'mising'. Did you mean 'missing'?"),
        (
            ("batch_rows = 100", 'batch_rows = "many"'),
            "expected a whole number >= 1 for 'batch_rows', got \"many\".",
        ),
        (
            ("batch_rows = 100", "batch_rows = 0"),
            "expected a whole number >= 1 for 'batch_rows', got 0.",
        ),
        (
            ("= [8]", '= "eight"'),
            "expected a list of whole numbers > 0 for 'layers', got \"eight\".",
        ),
        (('"adam"', '"adm"'), 'got "adm".'),
        (('"float64"', '"flaot64"'), "Unknown type 'flaot64' of column 'a'"),
        (('a = "float64"', "a = 3"), "Unknown type '3' of column 'a' in [source.schema]."),
        (('numeric = ["a", "b"]', 'numeric = ["a", "bb"]'), "needs column 'bb', which is not"),
        (('target = "y"', 'target = "yy"'), "needs column 'yy', which is not there. Did you mean"),
        (("[model]", "[model"), "is not valid TOML: Expected ']'"),
        (("[train]", '[infer]\nmodel = "m"\n[train]'), "has both [train] and [infer]"),
        (
            ('columns = ["key"]', 'columns = ["b"]'),
            "expects text or whole numbers in column 'b', got float64",
        ),
        (('columns = ["a", "b"]', 'columns = ["key"]'), "expects numbers in column 'key'"),
    ],
)
def test_a_mistake_in_the_file(
    tmp_path: Path, rows: Rows, small: Small, refused: Callable[..., str],
    change: Change, sentence: str,
) -> None:  # fmt: skip
    data = tmp_path / "data.csv"
    rows().write_csv(data)
    assert sentence in refused(small(data, change), code=2)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_file_that_is_not_there(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine.toml").write_text("")
    assert "Did you mean 'mine.toml'?" in refused(tmp_path / "mne.toml", code=2)


# ------------------------------------------------------------------------------------- whole files


def _missing(folder: Path, frame: pl.DataFrame) -> Path:
    frame.write_csv(folder / "data.csv")
    return folder / "daat.csv"


def _empty(folder: Path, frame: pl.DataFrame) -> Path:
    (folder / "data.csv").write_bytes(b"")
    return folder / "data.csv"


def _column_missing(folder: Path, frame: pl.DataFrame) -> Path:
    frame.drop("b").write_csv(folder / "data.csv")
    return folder / "data.csv"


def _column_twice(folder: Path, frame: pl.DataFrame) -> Path:
    text = frame.write_csv().replace("a,b,n", "a,b,b", 1)
    (folder / "data.csv").write_text(text)
    return folder / "data.csv"


def _column_twice_parquet(folder: Path, frame: pl.DataFrame) -> Path:
    table = pa.table([pa.array([1.0])] * 2, names=["a", "a"])
    pq.write_table(table, folder / "data.parquet")
    return folder / "data.parquet"


def _broken_gzip(folder: Path, frame: pl.DataFrame) -> Path:
    raw = gzip.compress(frame.write_csv().encode())
    (folder / "data.csv.gz").write_bytes(raw[: len(raw) // 2])
    return folder / "data.csv.gz"


def _footer_cut_off(folder: Path, frame: pl.DataFrame) -> Path:
    frame.write_parquet(folder / "whole")
    (folder / "data.parquet").write_bytes((folder / "whole").read_bytes()[:-200])
    return folder / "data.parquet"


@pytest.mark.parametrize(
    ("harm", "code", "sentence"),
    [
        (_missing, 2, "is no file. Did you mean 'data.csv'?"),
        (_empty, 2, "data.csv is empty: expected a CSV header in its first line."),
        (_column_missing, 2, "[source.schema] names column 'b', which "),
        (_column_twice, 2, "data.csv has column 'b' twice in its header: rename one of them."),
        (_column_twice_parquet, 2, "has column 'a' twice: rename one of them."),
        (_broken_gzip, 2, "the file is cut short or damaged: replace it and start again."),
        (_footer_cut_off, 2, "data.parquet cannot be read as parquet at row 0: "),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, rows: Rows, small: Small, refused: Callable[..., str],
    harm: Callable[[Path, pl.DataFrame], Path], code: int, sentence: str,
) -> None:  # fmt: skip
    assert sentence in refused(small(harm(tmp_path, rows())), code=code)


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) * 3 // 4]


@pytest.mark.parametrize("order", ["", 'order_by = ["value"]\n'])
def test_a_file_that_is_damaged_far_in(tmp_path: Path, headrace: Headrace, order: str) -> None:
    """What was read before stays; whether it is met at the start or later is no other mistake."""
    text = b"".join(b"%d\n" % n for n in np.random.default_rng(0).integers(0, 1 << 60, 100_000))
    (tmp_path / "rows.csv.gz").write_bytes(_cut(gzip.compress(b"value\n" + text)))
    file = _cleaning(tmp_path, "rows.csv.gz", f'{order}[source.schema]\nvalue = "int64"\n')
    code, _, err = headrace("run", file)
    assert code == 2, err
    assert "the file is cut short or damaged: replace it and start again." in err


@pytest.mark.parametrize("command", ["run", "check", "explore"])
@pytest.mark.parametrize("kind", ["arrow", "tar", "txt.gz", "xml"])
def test_a_file_that_is_cut_short_is_the_users_mistake(
    tmp_path: Path, rows: Rows, headrace: Headrace, kind: str, command: str
) -> None:
    path, keys = tmp_path / f"rows.{kind}", ""
    if kind == "arrow":
        rows().write_ipc(tmp_path / "whole")
        path.write_bytes(_cut((tmp_path / "whole").read_bytes()))
    elif kind == "tar":
        (tmp_path / "0.txt").write_text("x" * 1_000)
        with tarfile.open(tmp_path / "whole", "w") as tar:
            tar.add(tmp_path / "0.txt", "0.txt")
        path.write_bytes((tmp_path / "whole").read_bytes()[:1_000])
        keys = 'format = "webdataset"\n'
    elif kind == "txt.gz":
        path.write_bytes(_cut(gzip.compress(b"a\nb\n")))
        keys = 'format = "text"\n'
    else:
        path.write_text("<rows><row><a>1</a>")
        keys = 'row = "rows/row"\n'
    file = _cleaning(tmp_path, path.name, keys)
    code, _, err = headrace(command, file)
    assert code == 2, err
    assert err.count("headrace: ") == 1
    assert f"rows.{kind} " in err


def test_a_file_that_is_damaged_between_two_runs_is_no_change_of_columns(
    tmp_path: Path, rows: Rows, headrace: Headrace
) -> None:
    """A resume says that, and nothing of columns that no longer fit."""
    rows().write_parquet(tmp_path / "a.parquet")
    file = _cleaning(tmp_path, "*.parquet", "")
    assert headrace("run", file)[0] == 0
    (tmp_path / "b.parquet").write_bytes(_cut((tmp_path / "a.parquet").read_bytes()))
    code, _, err = headrace("run", file)
    assert code == 2
    assert "b.parquet cannot be read as parquet at row 0" in err
    assert "no longer fit" not in err


def _cleaning(folder: Path, name: str, keys: str) -> Path:
    file = folder / "clean.toml"
    file.write_text(
        f'name = "clean"\nfolder = "{folder}/out"\n[sink]\nkind = "files"\n'
        f'path = "{folder}/out/rows"\n[source]\nkind = "files"\npath = "{folder}/{name}"\n{keys}'
    )
    return file


# -------------------------------------------------------------------------------------- single rows


@pytest.mark.full
def test_a_wrong_type_in_row_10_000(
    tmp_path: Path, rows: Rows, small: Small, kept_going: Callable[..., tuple[pl.DataFrame, Totals]]
) -> None:
    lines = rows(12_000).write_csv().splitlines(keepends=True)
    lines[10_000] = "oops,1,1,n,1\n"
    (tmp_path / "data.csv").write_text("".join(lines))
    found, account = kept_going(small(tmp_path / "data.csv"))
    assert account.learned == 11_999
    assert found.select("_position", "stage", "reason", "detail").rows() == [
        (
            len("".join(lines[:10_000])),
            "decode",
            "wrong_type",
            "Expected float64, got 'oops' in column 'a'.",
        )
    ]


@pytest.mark.parametrize("first", [False, True], ids=["judged as learned", "answered first"])
def test_a_row_that_cannot_be_learned_is_in_no_figure(
    first: bool,
    tmp_path: Path,
    rows: Rows,
    small: Small,
    kept_going: Callable[..., tuple[pl.DataFrame, Totals]],
) -> None:
    """Neither its label nor the error of its prediction, as of every dead letter."""
    y = pl.when(pl.col("n") == 150).then(1e37).otherwise(pl.col("y"))
    rows(300).with_columns(y=y).write_csv(tmp_path / "data.csv")
    answer = '[sink]\nanswer = "first"' if first else "[sink]"
    found, account = kept_going(small(tmp_path / "data.csv", ("[sink]", answer)))
    assert found.select("stage", "reason").rows() == [("learn", "non_finite")]
    assert account.learned == 299
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["rows"] == report["all"]["rows"] == 299
    assert report["all"]["mae"] < 100
    assert all(one["mae"] < 100 for one in report["all"]["baselines"].values())


def test_a_torn_last_line(
    tmp_path: Path, rows: Rows, small: Small, kept_going: Callable[..., tuple[pl.DataFrame, Totals]]
) -> None:
    text = rows(200).write_ndjson()
    (tmp_path / "data.ndjson").write_text(text[:-10])
    found, account = kept_going(small(tmp_path / "data.ndjson"))
    assert account.learned == 199
    assert found.select("_position", "reason").rows() == [(text[:-1].rfind("\n") + 1, "broken")]


def test_nan_and_infinity(
    tmp_path: Path, rows: Rows, small: Small, kept_going: Callable[..., tuple[pl.DataFrame, Totals]]
) -> None:
    b = pl.when(pl.col("n") == 107).then(float("inf")).when(pl.col("n") == 9).then(float("nan"))
    y = pl.when(pl.col("n") == 11).then(float("-inf")).when(pl.col("n") == 13).then(None)
    frame = rows(300).with_columns(
        b=b.otherwise(pl.col("b")), y=y.otherwise(pl.col("y"))
    )  # fmt: skip
    frame.write_csv(tmp_path / "data.csv")
    found, account = kept_going(small(tmp_path / "data.csv"))
    assert account.learned == 296
    values = found["value"].str.json_path_match("$.n").cast(pl.Int64)
    told = dict(zip(values, found["reason"], strict=True))
    assert told == {107: "non_finite", 9: "missing", 11: "non_finite", 13: "missing_label"}


def test_an_all_null_column_is_told(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace
) -> None:
    rows(300).with_columns(a=pl.lit(None, pl.Float64)).write_csv(tmp_path / "data.csv")
    code, _, err = headrace("run", small(tmp_path / "data.csv"))
    assert code == 0
    assert "[scrub.missing] found no value in column 'a' to learn from, and filled all" in err


def test_a_category_never_seen_is_the_unknown_one(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace, totals: Callable[[Path], Totals]
) -> None:
    names = pl.format("key {}", pl.col("n"))
    rows(300).with_columns(key=names).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv")
    assert headrace("run", file)[0] == 0
    assert totals(file).learned == 300


def test_an_int64_overflow(
    tmp_path: Path, rows: Rows, small: Small, kept_going: Callable[..., tuple[pl.DataFrame, Totals]]
) -> None:
    text = rows(100).write_csv().replace(",50,", f",{2**63},", 1)
    (tmp_path / "data.csv").write_text(text)
    found, account = kept_going(small(tmp_path / "data.csv"))
    assert account.learned == 99
    assert found.select("reason", "detail").rows() == [
        ("out_of_range", f"Expected int64, got '{2**63}' in column 'n'.")
    ]


def test_a_label_outside_the_classes(
    tmp_path: Path, rows: Rows, small: Small, kept_going: Callable[..., tuple[pl.DataFrame, Totals]]
) -> None:
    label = pl.when(pl.col("n") == 30).then(pl.lit("meh")).when(pl.col("a") > 0).then(pl.lit("yes"))
    frame = rows(200).with_columns(y=label.otherwise(pl.lit("no")))
    frame.write_csv(tmp_path / "data.csv")
    binary = 'target = "y"\ntask = "binary"\nclasses = ["no", "yes"]'
    file = small(tmp_path / "data.csv", ('y = "float64"', 'y = "string"'), ('target = "y"', binary))
    found, account = kept_going(file)
    assert account.learned == 199
    assert found.select("stage", "reason", "detail").rows() == [
        ("collate", "unknown_label", "Expected a label of no, yes ([model] classes); got 'meh'.")
    ]


# -------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_of_another_pipeline(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace, refused: Callable[..., str]
) -> None:
    data = tmp_path / "data.csv"
    rows(500).write_csv(data)
    assert headrace("run", small(data))[0] == 0
    sentence = refused(small(data, ("layers = [8]", "layers = [9]")), code=2)
    assert "model" in sentence
    assert "--fresh" in sentence
    assert headrace("run", "--fresh", small(data, ("layers = [8]", "layers = [9]")))[0] == 0


def test_a_checkpoint_cut_in_half_falls_back_to_the_one_before(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace,
    totals: Callable[[Path], Totals], results: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    data = tmp_path / "data.csv"
    rows(1_000).write_csv(data)
    file = small(data)
    assert headrace("run", file)[0] == 0
    before = results()
    newest = max((tmp_path / "run" / "checkpoints").glob("checkpoint-*[0-9].*"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    code, _, err = headrace("run", file)
    assert code == 0
    assert newest.name in err
    assert "checkpoint is not whole; the one before it is used" in err
    assert totals(file).learned == 1_000
    assert results().equals(before)


# ------------------------------------------------------------------------------- models and places


def test_a_model_file_that_is_not_ours(
    tmp_path: Path, rows: Rows, small: Small, refused: Callable[..., str]
) -> None:
    data = tmp_path / "data.csv"
    rows(10).write_csv(data)
    (tmp_path / "text.onnx").write_text("no model")
    other = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Neg(x) }'
    )
    onnx.save(other, tmp_path / "other.onnx")
    cut = f"[model]{_between(small(data), '[model]', '[evaluation]')}[evaluation]\nwindow = 1000\n"
    for name, sentence in (
        ("text.onnx", "text.onnx' cannot be served: it is no ONNX model"),
        ("other.onnx", "other.onnx' reads x (float32, n): say which columns"),
        ("none.onnx", "none.onnx"),
    ):
        file = small(data, (cut, f'[infer]\nmodel = "{tmp_path / name}"\n'))
        assert sentence in refused(file, code=2)


def _between(file: Path, start: str, end: str) -> str:
    text = file.read_text()
    return text[text.index(start) + len(start) : text.index(end)]


def test_a_port_in_use(
    tmp_path: Path, rows: Rows, small: Small, refused: Callable[..., str]
) -> None:
    data = tmp_path / "data.csv"
    rows(10).write_csv(data)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refused(small(data, more=f"[service]\nport = {port}\n"), code=2)
    assert f"Port {port} on 127.0.0.1 is in use by another program: choose another" in sentence


def test_an_output_folder_below_a_file(
    tmp_path: Path, rows: Rows, small: Small, refused: Callable[..., str]
) -> None:
    data = tmp_path / "data.csv"
    rows(10).write_csv(data)
    sentence = refused(small(data, ('/out"', '/data.csv/out"')), code=2)
    assert "cannot be a folder: " in sentence


def test_a_read_only_output_folder(tmp_path: Path, rows: Rows, small: Small) -> None:
    """In a process without root's right to write everywhere."""
    data = tmp_path / "data.csv"
    rows(10).write_csv(data)
    file = small(data)
    (tmp_path / "out").mkdir(mode=0o555)
    drop = ["setpriv", "--bounding-set", "-dac_override", "--"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-m", "engine.commands.cli", "run", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(r"\[sink\] path '.*out' cannot be written: no permission at", done.stderr)


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Sets how large a file may grow: the kernel refuses what goes beyond, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_for_results_stops_and_keeps_what_is_safe(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace, refused: Callable[..., str],
    results: Callable[[], pl.DataFrame], small_disk: Callable[[int], None],
) -> None:  # fmt: skip
    data = tmp_path / "data.csv"
    rows(20_000).write_csv(data)
    file = small(data, ("interval_batches = 4", "interval_batches = 100"))
    small_disk(1 << 16)
    assert "free some space and start again" in refused(file, code=1)
    small_disk(resource.RLIM_INFINITY)
    assert headrace("run", file)[0] == 0
    assert results()["n"].to_list() == list(range(20_000))


def test_a_full_disk_for_checkpoints_is_counted_and_told_at_the_end(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace,
    counted: Callable[[], dict[str, float]], small_disk: Callable[[int], None],
) -> None:  # fmt: skip
    data = tmp_path / "data.csv"
    rows(2_000).write_csv(data)
    file = small(data, ("layers = [8]", "layers = [256, 256]"))
    small_disk(1 << 18)
    code, _, err = headrace("run", file)
    assert code == 1
    assert "checkpoint failed" in err
    assert "last good one" not in err
    last = err.splitlines()[-1]
    assert last.startswith("headrace: The checkpoint cannot be written to")
    assert "File too large; there is no other. Unsaved work is lost: fix that and start" in last
    assert counted()["headrace_checkpoint_failures_total"] == 6
    assert counted()["headrace_learned_records_total"] == 2_000


def test_a_full_disk_for_all_at_the_end_is_about_the_checkpoint(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace,
    small_disk: Callable[[int], None],
) -> None:  # fmt: skip
    data = tmp_path / "data.csv"
    rows(2_000).write_csv(data)
    file = small(data, ("layers = [8]", "layers = [256, 256]"))
    small_disk(1 << 15)
    code, _, err = headrace("run", file)
    assert code == 1
    assert "The artifacts of the run cannot be written to" in err
    assert err.splitlines()[-1].startswith("headrace: The checkpoint cannot be written to")
    assert (tmp_path / "run" / "report.json").is_file()


def test_a_picture_that_cannot_be_written_fails_no_run(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace,
    results: Callable[[], pl.DataFrame], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = tmp_path / "data.csv"
    rows(20_000).write_csv(data)

    def full(figure: object, file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, _, err = headrace("run", small(data))
    assert code == 0
    assert "The error plot cannot be written to" in err
    assert results().height == 20_000


def test_too_many_rejected_rows_stop_with_their_own_reason(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace,
    letters: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    frame = rows(2_000).with_columns(
        b=pl.when((pl.col("n") > 1_000) & (pl.col("n") % 2 == 0))
        .then(np.inf)
        .otherwise(pl.col("b"))
    )
    frame.write_csv(tmp_path / "data.csv")
    limits = "[dead_letters]\nwindow = 500\nlimit = 0.2\n[export]\n"
    code, _, err = headrace("run", small(tmp_path / "data.csv", more=limits))
    assert code == 3
    assert "No model is exported after a run with so many rejected rows." in err
    assert not list((tmp_path / "run").glob("*.onnx"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rows"] > 900
    assert (tmp_path / "run" / "metrics.prom").is_file()
    assert "rows were rejected (collate: non_finite), and [dead_letters] limit allows 20.0%" in err
    assert (
        f"give the reason of each row. The rejected rows are in {tmp_path}/run/dead_letters." in err
    )
    assert set(letters()["reason"]) == {"non_finite"}
