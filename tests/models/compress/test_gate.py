"""The gate: who passes it, who is refused and why, and which file serves in the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console

from engine.system import limited_process
from engine.types import (
    Affine,
    Batch,
    Codes,
    Features,
    Fill,
    HeadraceError,
    Mark,
    Tensors,
    Transform,
    UserError,
)
from models.compress.gate import (
    Candidate,
    Compression,
    GateReport,
    _choose,
    _with_refusal,
    compress,
)
from models.compress.quantize import CANDIDATES
from models.export.model import export
from models.learners.tabular import TabularLearner
from models.serving.predictor import OnnxPredictor
from models.serving.session import available_providers
from tests.models import crafted

WIDTH = 16
NAMES = tuple(f"x{i}" for i in range(WIDTH))
TASKS = {"regression": (), "binary": ("no", "yes"), "multiclass": ("x", "y", "z")}
FRONT: list[Transform] = [
    *(Fill(column=name, value=0.0) for name in NAMES),
    *(Affine(column=name, shift=0.0, scale=1.0) for name in NAMES),
    Codes(column="key", values=("n", "e", "s", "w")),
]
LENIENT: dict[str, Any] = {
    "min_speedup": 0.01, "max_size_ratio": 10.0, "rounds": 3, "max_slice_loss": 1e6,
}  # fmt: skip
"""So that only what a test sets can refuse, on however noisy a machine."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate's process imports its maker by name, from the path of this one."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


def rows(n: int, seed: int, task: str) -> pl.DataFrame:
    """Raw rows with the label `y`: a number, no or yes, x, y or z."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n, WIDTH))
    codes = rng.integers(0, 5, n)
    target = labels(numbers, codes, task)
    if task != "regression":
        target = np.array(TASKS[task])[target]
    keys = np.array(["never", "n", "e", "s", "w"])[codes]
    return pl.DataFrame(numbers, schema=list(NAMES)).with_columns(
        key=pl.Series(keys), y=pl.Series(target)
    )


def labels(numbers: NDArray[Any], codes: NDArray[Any], task: str) -> NDArray[Any]:
    signal: NDArray[Any] = numbers[:, :4].sum(1) + numbers[:, 4] * numbers[:, 5] + codes - 2
    if task == "regression":
        return np.asarray(signal, np.float32)
    cuts = [0.0] if task == "binary" else [-1.0, 1.0]
    classes: NDArray[Any] = np.digitize(signal, cuts).astype(np.int64)
    return classes


def learner_of(task: str, layers: tuple[int, ...], batches: int) -> TabularLearner:
    features = Features(
        numeric=NAMES, categories={"key": 5}, target="y", task=task, classes=TASKS[task]
    )
    training = TabularLearner.Training(optimizer="adam", lr=0.003, replay_rows=0)
    learner = TabularLearner(TabularLearner.Settings(layers=layers), training, features)
    rng = np.random.default_rng(0)
    for _ in range(batches):
        numbers, codes = rng.normal(size=(256, WIDTH)), rng.integers(0, 5, 256)
        tensors = Tensors(
            numeric=torch.from_numpy(numbers.astype(np.float32)),
            categories=torch.from_numpy(codes[:, None]),
            target=torch.from_numpy(labels(numbers, codes, task)),
        )
        learner.learn(Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0, tensors=tensors))
    return learner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(task, layers, batches) -> its float32 file, trained once."""
    done: dict[object, Path] = {}

    def make(task: str, layers: tuple[int, ...] = (64, 32), batches: int = 60) -> Path:
        key = task, layers, batches
        if key not in done:
            path = tmp_path_factory.mktemp("model") / "m.fp32.onnx"
            metadata = {"version": "v1", "stages": "[]"}
            done[key] = export(path, learner_of(task, layers, batches), FRONT, metadata)
        return done[key]

    return make


Model = Callable[..., Path]


def of(report: GateReport) -> dict[str, Any]:
    return {candidate.name: candidate for candidate in report.candidates}


# ------------------------------------------------------------------------------------- accepted


def test_a_wide_network_is_served_in_int8(tmp_path: Path, model: Model) -> None:
    """Products of 512 x 512 are what int8 is for: no worse, smaller, and it says so."""
    wide = model("multiclass", (512, 512), 14)
    settings = Compression(
        candidates=("int8",), max_quality_loss=2.0, max_slice_loss=5.0, min_speedup=0.01,
        max_size_ratio=0.35, rounds=5,
    )  # fmt: skip
    path = tmp_path / "served" / "model.onnx"
    report = compress(wide, rows(2_000, 7, "multiclass"), settings, path=path)
    base, small = report.candidates
    assert (base.name, small.name) == ("float32", "int8")
    assert report.failed == {}
    assert small.refusal is None
    assert base.error < 0.3  # of three classes: it has learned
    assert small.loss <= 2.0
    assert 0 < small.divergence < 0.2
    assert small.size < 0.35 * base.size
    assert report.chosen in ("float32", "int8")
    assert path.read_bytes() == Path(of(report)[report.chosen].path).read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.int8.onnx", "model.onnx"]


@pytest.mark.full
@pytest.mark.parametrize("task", TASKS)
def test_figures(tmp_path: Path, model: Model, task: str) -> None:
    """Each candidate's are its own: judged on the newer rows, timed, weighed."""
    held_out = rows(400, 8, task)
    settings = Compression(max_quality_loss=1e6, calibration=0.25, **LENIENT)
    report = compress(model(task), held_out, settings, path=tmp_path / "m.onnx")
    assert [c.name for c in report.candidates] == ["float32", *CANDIDATES]
    assert report.measure == ("MAE" if task == "regression" else "error")
    assert (report.rows, report.provider) == (300, available_providers(())[0])
    base = report.candidates[0]
    assert (base.loss, base.divergence, base.speedup) == (0.0, 0.0, 1.0)
    for c in report.candidates:
        assert c.refusal is None
        assert c.size == Path(c.path).stat().st_size
        assert c.error == pytest.approx(error(Path(c.path), held_out.tail(300), task), rel=1e-5)
        share = base.error if task == "regression" else 1.0
        assert c.loss == pytest.approx(100 * (c.error - base.error) / share)
        assert 0 < c.batch_ms <= c.batch_p99_ms
        assert c.single_ms > 0


def error(path: Path, held_out: pl.DataFrame, task: str) -> float:
    """By the predictor, from its answers."""
    reserved = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    batch = Batch(frame=held_out.select(*reserved, pl.all()), mark=Mark(), arrived=0.0)
    predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(path)))
    said, true = predictor.predict(batch).frame.select("prediction", "y").get_columns()
    wrong = (said - true).abs() if task == "regression" else (said != true).cast(pl.Float64)
    return float(wrong.to_numpy().mean())


def test_the_fastest_accepted_serves_and_of_equally_fast_ones_the_smallest() -> None:
    def of(name: str, low: float, high: float, size: int) -> Candidate:
        speedup = (low + high) / 2
        return Candidate(
            name=name, path="", error=0.0, loss=0.0, figures=(), divergence=0.0, batch_ms=1.0,
            batch_p99_ms=1.0, single_ms=1.0, speedup=speedup, speedup_low=low, speedup_high=high,
            size=size,
        )  # fmt: skip

    base = of("float32", 1.0, 1.0, 100)
    assert _choose([base, of("a", 1.5, 1.6, 50), of("b", 2.0, 2.2, 60)]).name == "b"
    assert _choose([base, of("a", 1.9, 2.3, 50), of("b", 2.0, 2.2, 60)]).name == "a"
    assert _choose([base, of("a", 2.0, 2.2, 60), of("b", 1.9, 2.3, 50)]).name == "b"
    assert _choose([base]).name == "float32"


def test_labels_that_are_not_text(tmp_path: Path) -> None:
    """Booleans and whole numbers are classes by their text, as in training."""
    for classes, kind in ((("false", "true"), pl.Boolean), (("0", "1"), pl.Int64)):
        features = Features(numeric=("x0",), target="y", task="binary", classes=classes)
        learner = TabularLearner(
            TabularLearner.Settings(layers=()),
            TabularLearner.Training(lr=1.0, replay_rows=0),
            features,
        )
        x = torch.linspace(-1, 1, 100)[:, None]
        tensors = Tensors(
            numeric=x, categories=torch.zeros((100, 0), dtype=torch.int64), target=(x[:, 0] > 0) * 1
        )
        for _ in range(200):
            learner.learn(Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0, tensors=tensors))
        file = export(tmp_path / "f.onnx", learner, [], {})
        frame = pl.DataFrame({"x0": x[:, 0].numpy().repeat(2)}).with_columns(
            y=(pl.col("x0") > 0).cast(kind)
        )
        settings = Compression(candidates=(), rounds=3)
        report = compress(file, frame, settings, path=tmp_path / "m.onnx")
        assert report.candidates[0].error < 0.1


# ------------------------------------------------------------------------------------- refused


def refusal(sentence: str | None, pattern: str) -> float:
    """The one number the sentence gives of the candidate."""
    assert sentence is not None
    found = re.fullmatch(pattern, sentence)
    assert found, sentence
    return float(found[1])


def test_refused_for_its_quality(tmp_path: Path, model: Model) -> None:
    """A regression told to the last digit loses something in 8 bits, and none is allowed."""
    fp32 = model("regression", (64, 32), 150)
    settings = Compression(candidates=("int8",), max_quality_loss=0, **LENIENT)
    path = tmp_path / "m.onnx"
    frame = rows(500, 8, "regression")
    report = compress(fp32, exactly(fp32, frame), settings, path=path)
    small = of(report)["int8"]
    assert small.loss > 0
    pattern = r"refused: MAE worse by ([\d.]+)% \(.+ to .+\), allowed 0; RMSE worse .+"
    assert refusal(small.refusal, pattern) == pytest.approx(small.loss, abs=0.01)
    assert report.chosen == "float32"
    assert path.read_bytes() == fp32.read_bytes()


def exactly(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows, labelled with nearly what the model itself says, so that any other is worse."""
    predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(path)))
    return frame.with_columns(y=pl.Series(predictor.scores(frame).astype(np.float64) + 1e-4))


def test_refused_for_its_speed(tmp_path: Path, model: Model) -> None:
    fp32 = model("binary")
    settings = Compression(max_quality_loss=1e6, **{**LENIENT, "min_speedup": 1000})
    path = tmp_path / "m.onnx"
    report = compress(fp32, rows(200, 8, "binary"), settings, path=path)
    for candidate in report.candidates[1:]:
        said = refusal(candidate.refusal, r"refused: speed ([\d.]+)x \(.+ to .+\), needed 1000x")
        assert said == pytest.approx(candidate.speedup, abs=0.01)
    assert report.candidates[0].refusal is None
    assert report.chosen == "float32"
    assert path.read_bytes() == fp32.read_bytes()


def test_refused_for_its_size(tmp_path: Path, model: Model) -> None:
    fp32 = model("binary")
    settings = Compression(max_quality_loss=1e6, **{**LENIENT, "max_size_ratio": 0.001})
    report = compress(fp32, rows(200, 8, "binary"), settings, path=tmp_path / "m.onnx")
    for candidate in report.candidates[1:]:
        said = refusal(candidate.refusal, r"refused: size ([\d.]+) of float32, allowed 0\.001")
        assert said == pytest.approx(candidate.size / fp32.stat().st_size, abs=0.01)
    assert report.chosen == "float32"


def test_all_reasons_are_given(tmp_path: Path, model: Model) -> None:
    fp32 = model("regression", (64, 32), 150)
    settings = Compression(
        candidates=("int8",), max_quality_loss=0, min_speedup=1000, max_size_ratio=0.001, rounds=3
    )
    frame = exactly(fp32, rows(300, 8, "regression"))
    refused = compress(fp32, frame, settings, path=tmp_path / "m.onnx").candidates[1].refusal
    assert refused is not None
    parts = r"refused: MAE worse by .+, allowed 0; .*speed .+, needed 1000x; size .+ allowed 0.001"
    assert re.fullmatch(parts, refused)


def test_not_a_number_is_refused(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quality that cannot be told is not good quality."""
    monkeypatch.setitem(CANDIDATES, "int8", crafted.spoilt)
    settings = Compression(candidates=("int8",), max_quality_loss=1e6, **LENIENT)
    frame = rows(200, 8, "regression")
    report = compress(model("regression"), frame, settings, path=tmp_path / "m.onnx")
    assert report.chosen == "float32"
    assert report.candidates[1].refusal == "refused: 140 rows get no finite score"
    report.to_json(tmp_path / "compression.json")
    read = json.loads((tmp_path / "compression.json").read_text(), parse_constant=pytest.fail)
    assert read["candidates"][1]["loss"] is None  # JSON has no NaN


# -------------------------------------------------------------------------- what cannot be made


def test_a_candidate_that_fails_costs_only_itself(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = {"int8": crafted.fails, "int8_dynamic": crafted.lies, "silent": crafted.silent}
    for name, made in makers.items():
        monkeypatch.setitem(CANDIDATES, name, made)
    settings = Compression(
        candidates=("int8", "int8_dynamic", "silent", "float16"), max_quality_loss=1e6, **LENIENT
    )
    path = tmp_path / "m.onnx"
    report = compress(model("binary"), rows(200, 8, "binary"), settings, path=path)
    assert [c.name for c in report.candidates] == ["float32", "float16"]
    assert list(report.failed) == ["int8", "int8_dynamic", "silent"]
    assert report.failed["int8"] == "no such node"
    assert "Protobuf parsing failed" in report.failed["int8_dynamic"]
    assert report.failed["silent"] == "NotImplementedError"
    assert report.chosen in ("float32", "float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.float16.onnx", "m.onnx"]
    assert "refused: no such node" in printed(report)


@pytest.mark.parametrize(
    ("maker", "limits", "reason"),
    [
        (crafted.segfaults, {}, "crashed with SIGSEGV"),
        (crafted.aborts, {}, "crashed with SIGABRT"),
        (crafted.divides, {}, "crashed with SIGFPE"),
        (crafted.exits, {}, "ended with exit code 0"),
        (crafted.sleeps, {}, "hung: no progress for 3 s"),
        (crafted.spins, {"max_seconds": 2}, "took more than 2 s of processor time"),
        (crafted.eats, {"max_memory": "512MiB"}, "took more than 512 MiB of memory"),
        (crafted.nibbles, {"max_memory": "512MiB"}, "took more than 512 MiB of memory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_ends_a_process_ends_the_candidates(
    tmp_path: Path,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    maker: Callable[..., None],
    limits: dict[str, Any],
    reason: str,
) -> None:
    """One that crashes, hangs or takes ten gigabytes is a refused row; the model itself serves."""
    monkeypatch.setitem(CANDIDATES, "int8", maker)
    if maker is crafted.sleeps:
        monkeypatch.setattr(limited_process, "STALL_SECONDS", 3.0)
    fp32, path = model("binary", (), 5), tmp_path / "m.onnx"
    settings = Compression(candidates=("int8",), **LENIENT, **limits)
    report = compress(fp32, rows(200, 8, "binary"), settings, path=path)
    assert report.failed == {"int8": reason}
    assert [c.name for c in report.candidates] == ["float32"]
    assert f"refused: {reason}" in printed(report)
    assert path.read_bytes() == fp32.read_bytes()


def test_a_candidates_process_starts_without_what_it_does_not_use() -> None:
    """The float32 model is run without onnx, a candidate made without torch, polars, pydantic."""
    script = (
        "import sys, models.compress.candidate_process\n"
        "print([name for name in ('torch', 'polars', 'pydantic', 'onnx') if name in sys.modules])\n"
        "import models.compress.quantize\n"
        "print([name for name in ('torch', 'polars', 'pydantic', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[3], capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[]", "['onnx']"]


def test_ten_gigabytes_are_refused_without_a_setting() -> None:
    """The default limit is below them."""
    assert crafted.TEN_GIGABYTES > 2**31 + 8 * 10**6


def test_a_model_that_does_not_run_serves_nobody(tmp_path: Path, model: Model) -> None:
    broken = onnx.load(model("binary", (), 5))
    broken.graph.node[0].op_type = "Nonsense"
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(HeadraceError, match=r"cannot serve: the model .*Nonsense"):
        compress(
            tmp_path / "broken.onnx", rows(200, 8, "binary"), Compression(), path=tmp_path / "m"
        )
    assert not (tmp_path / "m").exists()


def test_the_model_itself_is_never_refused_for_its_quality(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CANDIDATES, "int8", crafted.same)
    none = {**LENIENT, "max_slice_loss": 0}
    settings = Compression(candidates=("int8",), max_quality_loss=0, **none)
    for task in ("regression", "multiclass"):
        report = compress(model(task), rows(200, 8, task), settings, path=tmp_path / "m.onnx")
        assert report.candidates[1].refusal is None
        assert {f.loss_high for f in report.candidates[1].figures} == {0.0}


def test_a_rare_class_that_is_lost_refuses_though_accuracy_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60,000 rows of 20 lognormal numbers, 2 % positive, the default settings: int8 that takes its
    ranges from the longest tails, and rounds its scores to them, loses what nobody would see in the
    share of right answers. The candidate of ours does not."""
    monkeypatch.setitem(CANDIDATES, "coarse", crafted.coarse)
    names = tuple(f"x{i}" for i in range(20))
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(60_000, 20))
    numbers = np.exp(1.5 * logs)
    positive = rng.random(60_000) < 1 / (1 + np.exp(4.6 - 0.6 * logs[:, :5].sum(axis=1)))
    held = np.random.default_rng(5).random(60_000) < 0.02
    mean, spread = numbers.mean(axis=0), numbers.std(axis=0)
    scaled = torch.from_numpy(((numbers - mean) / spread).astype(np.float32)[~held])
    target = torch.from_numpy(positive.astype(np.int64)[~held])
    features = Features(numeric=names, target="y", task="binary", classes=("false", "true"))
    training = TabularLearner.Training(optimizer="adam", lr=0.003, threads=1, replay_rows=0)
    learner = TabularLearner(
        TabularLearner.Settings(layers=(64, 32), standardize=False), training, features
    )
    for start in range(0, 2 * len(target), 256):
        part = slice(start % len(target), start % len(target) + 256)
        none = torch.zeros((len(target[part]), 0), dtype=torch.int64)
        tensors = Tensors(numeric=scaled[part], categories=none, target=target[part])
        learner.learn(Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0, tensors=tensors))
    front = [
        Affine(column=n, shift=float(m), scale=1 / float(s))
        for n, m, s in zip(names, mean, spread, strict=True)
    ]
    fp32 = export(tmp_path / "m.fp32.onnx", learner, front, {})
    frame = pl.DataFrame(numbers, schema=list(names)).with_columns(y=pl.Series(positive))
    settings = Compression(candidates=("coarse", "int8"), min_speedup=0.01, rounds=3)
    path = tmp_path / "m.onnx"
    report = compress(fp32, frame.filter(pl.Series(held)), settings, path=path)
    figures = {
        name: {figure.name: figure for figure in of(report)[name].figures}
        for name in ("coarse", "int8")
    }
    coarse = figures["coarse"]
    assert coarse["error"].refusal is None
    assert coarse["AUC"].loss > 0.5
    assert coarse["AUC"].refusal is not None
    assert coarse["AUC"].refusal in str(of(report)["coarse"].refusal)
    assert abs(figures["int8"]["AUC"].loss) < 0.5
    assert report.chosen == "float32"
    assert path.read_bytes() == fp32.read_bytes()


# --------------------------------------------------------------------------------------- report


def printed(report: GateReport) -> str:
    console = Console(width=400, color_system=None)
    with console.capture() as said:
        for part in report.tables():
            console.print(part)
    return said.get()


def test_verdict_for_machines_and_for_people(tmp_path: Path, model: Model) -> None:
    settings = Compression(max_quality_loss=1e6, **{**LENIENT, "min_speedup": 1000})
    report = compress(
        model("regression"), rows(200, 8, "regression"), settings, path=tmp_path / "m.onnx"
    )
    report.to_json(tmp_path / "deep" / "compression.json")
    read = json.loads((tmp_path / "deep" / "compression.json").read_text())
    assert read["chosen"] == "float32"
    assert (read["rows"], read["measure"], read["failed"]) == (140, "MAE", {})
    for candidate, there in zip(report.candidates, read["candidates"], strict=True):
        assert there == json.loads(json.dumps(asdict(candidate)))
    assert (read["calibration"], read["confidence"], read["remark"]) == (60, 0.95, None)
    assert set(read["versions"]) == {"onnx", "numpy", "polars", "onnxruntime"}
    assert read["machine"]["cores"] > 0
    assert read["machine"]["cpu"]
    text = printed(report)
    assert f"compression, judged on 140 held-out rows ({available_providers(())[0]})" in text
    assert "140 rows, the newest of those held out by a hash of the row" in text
    assert "intervals of 95%" in text
    for figure in report.candidates[1].figures:
        shown = [figure.loss, figure.loss_low, figure.loss_high]
        loss, low, high = (f"{round(value, 2) + 0.0:+.2f}" for value in shown)
        assert f"{loss} % ({low} to {high})" in text
    lines = {line.split()[1]: line for line in text.splitlines() if "│" in line}
    assert lines["float32"].rstrip(" │").endswith("serves")
    for candidate in report.candidates[1:]:
        assert str(candidate.refusal) in lines[candidate.name]
        assert f"{candidate.loss:+.2f} %" in lines[candidate.name]


# ------------------------------------------------------------------------------ the user's mistakes


def test_unknown_candidate(tmp_path: Path, model: Model) -> None:
    settings = Compression(candidates=("int8", "int4"))
    with pytest.raises(UserError) as error:
        compress(model("binary"), rows(200, 8, "binary"), settings, path=tmp_path / "m.onnx")
    assert str(error.value) == (
        "[export.compress] candidates expects names of int8, int8_dynamic, float16, got 'int4'."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "unlabelled", "got"),
    [
        (0, 0, (0, 0)),
        (30, 0, (9, 21)),
        (140, 0, (42, 98)),
        (200, 60, (42, 98)),
    ],
)
def test_too_few_rows_are_no_error(
    tmp_path: Path, model: Model, count: int, unlabelled: int, got: tuple[int, int]
) -> None:
    """Ten must calibrate and a hundred judge, and each needs a label; else float32 serves, with a
    remark."""
    frame = rows(count, 8, "binary").with_row_index("i")
    frame = frame.with_columns(y=pl.when(pl.col("i") >= unlabelled).then(pl.col("y"))).drop("i")
    remarked(model("binary"), frame, got, tmp_path / "m.onnx")


def test_no_row_held_out_is_no_error(tmp_path: Path, model: Model) -> None:
    remarked(model("regression"), None, (0, 0), tmp_path / "m.onnx")


def test_labels_of_no_class_and_rows_without_a_score_judge_nothing(
    tmp_path: Path, model: Model
) -> None:
    """They are rejected in training and in serving."""
    frame = rows(200, 8, "binary").with_row_index("i")
    odd = frame.with_columns(y=pl.when(pl.col("i") < 60).then(pl.lit("?")).otherwise("y"))
    remarked(model("binary"), odd, (42, 98), tmp_path / "m.onnx")
    infinite = frame.with_columns(
        x0=pl.when(pl.col("i") > 150).then(pl.lit(np.inf)).otherwise("x0")
    )
    remarked(model("binary"), infinite, (60, 91), tmp_path / "m.onnx")


def remarked(fp32: Path, frame: pl.DataFrame | None, got: tuple[int, int], path: Path) -> None:
    report = compress(fp32, frame, Compression(rounds=3), path=path)
    assert report.remark == (
        f"No compressed model was judged, and float32 serves: there are {got[0]} held-out rows "
        f"with a label and a score to calibrate and {got[1]} to judge with, and 10 and 100 are "
        "needed. Train longer, or raise [export] holdout."
    )
    assert (report.chosen, report.candidates, report.tables()) == (
        "float32",
        (),
        [report.remark],
    )
    assert path.read_bytes() == fp32.read_bytes()
    report.to_json(path.with_suffix(".json"))
    assert json.loads(path.with_suffix(".json").read_text())["remark"] == report.remark


@pytest.mark.parametrize(
    "keys",
    [
        {"max_quality_loss": -1},
        {"min_speedup": 0},
        {"max_size_ratio": 0},
        {"calibration": 1.0},
        {"rounds": 2},
        {"max_slice_loss": -1},
        {"confidence": 1.0},
        {"max_seconds": 0},
        {"max_memory": 0},
        {"speed": 1},
    ],
    ids=str,
)
def test_settings_out_of_bounds(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(keys))):
        Compression(**keys)


def test_a_near_miss_is_told_from_what_is_allowed() -> None:
    """A speed that is above what is needed, not surely; and a size just above what is allowed."""
    near = Candidate(
        name="int8", path="", error=0.0, loss=0.0, figures=(), divergence=0.0, batch_ms=1.0,
        batch_p99_ms=1.0, single_ms=1.0, speedup=1.12, speedup_low=1.07, speedup_high=1.17,
        size=100_123,
    )  # fmt: skip
    said = _with_refusal(near, 100_000, 0, Compression()).refusal
    assert said == (
        "refused: speed not surely 1.1x: 1.12x (1.07 to 1.17); size 1.001 of float32, allowed 1"
    )
