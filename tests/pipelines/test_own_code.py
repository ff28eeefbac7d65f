"""A user's own code that breaks its contract: one sentence that names it, exit code 1, and never an
end of the data or an account that does not balance."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch

from connectors.formats.text import RawText
from connectors.formats.values.columns import Columns
from connectors.memory import MemorySource
from engine import types
from engine.config import LoaderSettings
from engine.loading.loader import Loader
from engine.types import (
    Batch,
    EndOfStream,
    Features,
    HeadraceError,
    Mark,
    Records,
    Rejects,
    Schema,
    Step,
    Tensors,
    UserError,
    Values,
)
from engine.user_code import calls
from engine.user_code.calls import Calling, whose
from models.augment import Augmentation
from models.augment.augmentation import Augment, AugmentSettings
from tests.pipelines.conftest import Headrace

ROWS = 3_000
Change = Callable[[pl.DataFrame], Any]


class Changing(types.Stage):
    """A stage of one's own: changes the frame of every batch as its class says."""

    class Settings(types.Settings):
        """None."""

    change: ClassVar[Change]

    def apply(self, batch: Batch) -> Any:
        return replace(batch, frame=type(self).change(batch.frame))


def stage(change: Change) -> type[Changing]:
    return type("Own", (Changing,), {"change": staticmethod(change)})


def throw(error: BaseException) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        if 2_000 in frame["id"]:
            raise error
        return frame

    return change


def nothing(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


class Sampling(Changing):
    """Keeps every second row, without a word of the others."""

    def apply(self, batch: Batch) -> Batch:
        return replace(batch, frame=batch.frame.gather_every(2))


class Shrinking(Changing):
    """Takes rows out and calls it growth."""

    def apply(self, batch: Batch) -> Batch:
        return batch.with_frame(batch.frame.head(1), added=1 - len(batch))


class Repeating(Changing):
    """Each row twice, and says so; the first one of each batch is rejected."""

    def apply(self, batch: Batch) -> Batch:
        n = len(batch)
        added = batch.with_frame(pl.concat([batch.frame, batch.frame.reverse()]), added=n)
        keep = pl.Series(np.arange(2 * n) > 0)
        return added.reject(keep, stage=self.name, reason="first")


class Holding(Changing):
    """Has a state that no checkpoint can hold."""

    def apply(self, batch: Batch) -> Batch:
        return batch

    def snapshot(self) -> Any:
        return {"seen": {1, 2}}

    def restore(self, value: object) -> None: ...


class Slipping(Changing):
    """Counts rows in a state that it would lose."""

    def apply(self, batch: Batch) -> Batch:
        return batch

    def snapshots(self) -> Any:
        return 1

    def restored(self, value: object) -> None: ...


def read_with(kind: type[Changing]) -> list[int]:
    """The rows of each batch that a loader with this stage gives."""
    frame = pl.DataFrame({"id": np.arange(ROWS)})
    source = MemorySource.of([frame])
    settings = LoaderSettings(batch_rows=500)
    own: Any = kind("mine", kind.Settings())
    with Loader(source, schema={"id": pl.Int64()}, stages=[own], settings=settings) as loader:
        return [len(batch) for batch in loader]


@pytest.mark.parametrize(
    "error", [StopIteration(), StopAsyncIteration(), GeneratorExit(), EndOfStream()], ids=repr
)
def test_an_error_of_a_stage_is_no_end_of_the_stream(error: BaseException) -> None:
    sentence = rf"^\[scrub.mine\] kind '.*:Own' raised {type(error).__name__} \(.*:\d+\), which"
    with pytest.raises(HeadraceError, match=sentence) as caught:
        read_with(stage(throw(error)))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.gather_every(2), "given 500 rows and returned 250, .*: 250 rows are missing"),
        (lambda f: f.filter(pl.col("id") != 700), "500 rows and returned 499, .*1 row is missing"),
        (lambda f: pl.concat([f, f]), "500 rows and returned 1,000, .*: 500 rows are too many"),
        (lambda f: f.clear(), "given 500 rows and returned 0, .*: 500 rows are missing"),
        (lambda f: f.lazy(), "a batch whose frame is a .*LazyFrame, .*: collect"),
        (lambda f: None, "a batch whose frame is None, expected a polars.DataFrame"),
        (lambda f: f.drop("_position"), "rows without the column '_position', expected Int64"),
        (lambda f: f.cast({"_position": pl.Int32}), "rows whose '_position' is Int32"),
        (lambda f: f.with_columns(_position=pl.lit(0, pl.Int64)), "rows with other positions"),
        (lambda f: pl.concat([f[1:], f[1:2]]), "rows with other positions"),
        (lambda f: f.with_columns(_partition=pl.lit("else")), "rows with other positions"),
    ],
)
def test_a_stage_that_loses_or_invents_rows_is_told(change: Change, sentence: str) -> None:
    with pytest.raises(HeadraceError, match=rf"^\[scrub.mine\] kind '.*:Own' .*{sentence}"):
        read_with(stage(change))


class Promising(Changing):
    """Promises column b as float64, and no column c."""

    def bind(self, schema: Schema) -> Schema:
        return {**{c: t for c, t in schema.items() if c != "c"}, "b": pl.Float64()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.drop("c"), "returned no column 'b', which its bind returned"),
        (lambda f: f.drop("c").with_columns(b=pl.lit(1)), "'b' as int32, and its bind .* float64"),
        (lambda f: f.with_columns(b=pl.lit(1.0)), "returned column 'c', which its bind did not"),
        (lambda f: f.drop("c").with_columns(b=1.0, d=2.0), "returned column 'd', which its bind"),
        (lambda f: f.drop("c", "a").with_columns(b=1.0), "returned no column 'a', which"),
    ],
)
def test_columns_are_those_that_bind_promised(change: Change, sentence: str) -> None:
    own: Any = type("Own", (Promising,), {"change": staticmethod(change)})("mine", None)
    calls.bind(own, {"a": pl.Int64(), "c": pl.Int64(), "unread": pl.Int64()})
    with pytest.raises(HeadraceError, match=rf"^\[scrub.mine\] kind '.*:Own' .*{sentence}"):
        calls.apply(own, batch_of(["a", "c"]))


def test_columns_that_nothing_reads_are_not_missed() -> None:
    own: Any = type("Own", (Promising,), {"change": lambda f: f.drop("c").with_columns(b=1.0)})
    kept = own("mine", None)
    calls.bind(kept, {"a": pl.Int64(), "c": pl.Int64(), "unread": pl.Int64()})
    assert calls.apply(kept, batch_of(["a", "c"])).frame.columns[:2] == ["a", "_partition"]


def batch_of(columns: list[str]) -> Batch:
    rows = pl.DataFrame({c: [1, 2] for c in columns})
    frame = rows.with_columns(_partition=pl.lit("p"), _position=pl.Series([0, 1]))
    return Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=2)


@pytest.mark.parametrize(
    "keep",
    [
        np.array([True, False]),
        pl.Series([True, None]),
        pl.col("a") == 1,
        pl.col("_position") < pl.col("_position").max(),
    ],
    ids=str,
)
def test_rows_are_rejected_by_masks_of_all_kinds(keep: Any) -> None:
    after = batch_of(["a"]).reject(keep, stage="mine", reason="odd")
    assert after.frame["_position"].to_list() == [0]
    assert [r.rows["_position"].to_list() for r in after.rejects] == [[1]]


@pytest.mark.parametrize(
    ("keep", "left"), [(pl.lit(False), 0), (pl.Series([None, None]), 0), (pl.lit(True), 2)], ids=str
)
def test_one_value_rejects_every_row_or_none(keep: Any, left: int) -> None:
    assert len(batch_of(["a"]).reject(keep, stage="mine", reason="odd")) == left


@pytest.mark.parametrize(
    ("keep", "what"),
    [
        (np.array([True]), "bool of 1 row:"),
        (np.array([1, 0]), "int64 of 2 rows:"),
        (np.array([[True, False]]), "a numpy.ndarray:"),
        (pl.col("a"), "int64 of 2 rows:"),
        ([True, False], "a builtins.list:"),
        (None, "a builtins.NoneType:"),
    ],
    ids=str,
)
def test_what_is_no_mask_is_told(keep: Any, what: str) -> None:
    told = rf"^\[scrub.mine\] rejects by {what} .* of one bool for each of 2 rows"
    with pytest.raises(HeadraceError, match=told):
        batch_of(["a"]).reject(keep, stage="mine", reason="odd")


def test_the_objects_of_a_rejected_row_keep_their_columns_name() -> None:
    """Also where a field has the name of another column."""
    plain = batch_of(["id"])
    user = pl.struct(pl.lit(5).alias("id"), pl.lit("n").alias("name")).alias("user")
    batch = plain.with_frame(plain.frame.with_columns(user))
    (rejects,) = batch.reject(pl.col("id") == 1, stage="mine", reason="odd").rejects
    expected = {"id": 2, "user": {"id": 5, "name": "n"}}
    assert [json.loads(value) for value in rejects.rows["value"]] == [expected]


def test_taking_rows_out_is_no_growth() -> None:
    with pytest.raises(HeadraceError, match=r"returned 1, with 0 rejected and -499 added"):
        read_with(Shrinking)


def test_what_is_no_batch_is_told() -> None:
    class Own(Changing):
        def apply(self, batch: Batch) -> Any:
            return None

    with pytest.raises(HeadraceError, match=r"Own' returned None from apply: expected an engine"):
        read_with(Own)


def test_rows_may_change_their_order_leave_and_grow() -> None:
    assert read_with(stage(lambda f: f.reverse())) == [500] * 6
    assert read_with(Repeating) == [999] * 6


def test_any_other_error_stays_itself_and_says_whose_it_is() -> None:
    error = KeyError("x")
    with pytest.raises(KeyError) as caught:
        read_with(stage(throw(error)))
    assert caught.value is error
    assert (whose(error) or "").startswith("[scrub.mine] kind '")
    with pytest.raises(KeyError), Calling("sink", Changing):
        raise error
    assert (whose(error) or "").startswith("[scrub.mine]")  # the innermost is who raised it


# --------------------------------------------------------------------------------------- a source


class Counting(types.Source):
    """Rows 0, 1, 2, ... in `partition`, in pieces of five; each piece as its class changes it."""

    class Settings(types.Settings):
        """None."""

    format: types.Format = Columns()
    changes: ClassVar[Callable[[Records], Mapping[str, Any]]]

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.position = 0

    def schema(self, declared: Schema) -> Any:
        return {"n": pl.Int64()}

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if self.position >= 20:
            raise EndOfStream
        at = np.arange(self.position, self.position + 5)
        self.position += 5
        records = Records(
            partition="numbers",
            positions=at,
            next=self.position,
            values=pl.DataFrame({"n": at}),
            arrived=time.monotonic(),
        )
        return replace(records, **type(self).changes(records))

    def seek(self, mark: Mark) -> None:
        self.position = mark.positions.get("numbers", 0)


def source(**changes: Any) -> Any:
    """A source's class whose records have these values; of functions, what they make of them."""

    def changed(records: Records) -> dict[str, Any]:
        return {k: v(records) if callable(v) else v for k, v in changes.items()}

    return type("Own", (Counting,), {"changes": staticmethod(changed)})


BYTES = Values(data=np.zeros(5, np.uint8), bounds=np.arange(6))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"next": 0}, r"whose last position is 4 and whose next is 0: expected .* above 4"),
        ({"next": 4}, "whose last position is 4 and whose next is 4"),
        ({"next": 2**63}, r"whose next is 9,223,.*below 2\*\*63"),
        ({"next": None}, "whose next is None"),
        ({"next": np.int64(5)}, "whose next is a numpy.int64"),
        ({"epoch_offset": 9}, "whose last position is 13 and whose next is 5"),
        ({"positions": np.zeros(5, np.int64)}, "whose position 0 is followed by 0: expected"),
        ({"positions": np.array([0, 1, 3, 2, 4])}, "whose position 3 is followed by 2"),
        ({"positions": lambda r: r.positions - 1}, "whose positions begin at -1"),
        ({"positions": lambda r: r.positions * 1.0}, "positions are float64 of the shape"),
        ({"positions": lambda r: r.positions[None]}, "positions are int64 of the shape"),
        ({"positions": lambda r: r.positions.tolist()}, "positions are a builtins.list"),
        ({"positions": lambda r: r.positions[1:]}, "of 4 positions and 5 values"),
        ({"positions": lambda r: r.positions[:0]}, "of 0 positions and 5 values"),
        ({"partition": 3}, "whose partition is 3: expected a name"),
        ({"partition": None}, "whose partition is None"),
        ({"partition": ""}, "whose partition is ''"),
        ({"arrived": None}, "whose arrived is None"),
        ({"arrived": np.nan}, "whose arrived is nan"),
        ({"values": [1, 2]}, "whose values are a builtins.list: expected .* a polars.DataFrame"),
        ({"values": replace(BYTES, bounds=np.arange(7))}, "values.bounds leave their data of 5 by"),
        ({"values": replace(BYTES, bounds=np.arange(6)[::-1])}, "of 5 bytes, or decrease"),
        ({"values": replace(BYTES, bounds=np.arange(5))}, "of 5 positions and 4 values"),
        ({"keys": replace(BYTES, bounds=np.arange(3))}, "of 5 positions and 2 keys"),
        ({"headers": [None]}, "whose headers are a builtins.list: expected .*Values or None"),
        ({"timestamps": np.zeros(2, np.int64)}, "of 5 positions and 2 timestamps"),
        ({"timestamps": [1]}, "whose timestamps are a builtins.list"),
    ],
)
def test_records_that_would_be_lost_or_doubled_are_told(
    changes: dict[str, Any], sentence: str
) -> None:
    told = rf"^\[source\] kind '.*:Own' read Records .*{sentence}"
    for read in (partial(calls.read, max_bytes=99), calls.sample):
        if "of 0 positions" in sentence and read is calls.sample:
            continue  # a sample leaves out what has no row
        with pytest.raises(HeadraceError, match=told):
            read(source(**changes)(), 1_000, timeout=9.0)


def test_more_rows_than_were_asked_for_are_told() -> None:
    with pytest.raises(HeadraceError, match="read Records of 5 rows: expected 4 or fewer"):
        calls.read(source()(), 4, 99, 0.0)
    with pytest.raises(HeadraceError, match=r"of 'numbers' from position 0, .*expected 7 or more"):
        calls.read(source()(), 5, 99, 0.0, marked={"numbers": 7})


def test_a_source_that_reads_rows_again_ends_the_run() -> None:
    again = type("Own", (source(),), {"seek": lambda self, mark: None})
    settings = LoaderSettings(batch_rows=5)
    with Loader(source()(), schema={"n": pl.Int64()}, settings=settings) as loader:
        assert [len(batch) for batch in loader] == [5] * 4
    with Loader(again(), schema={"n": pl.Int64()}, settings=settings) as loader:
        loader.seek(Mark(positions={"numbers": 10}))
        with pytest.raises(HeadraceError, match=r"from position 0, .*expected 10 or more"):
            list(loader)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (None, "returned None from schema: expected its columns, name -> type"),
        (["n"], "returned a builtins.list from schema"),
        ({"n": "int64"}, "returned 'int64' as the type of column 'n' from schema: expected a pola"),
        ({1: pl.Int64()}, "returned a builtins.int as a column's name from schema"),
    ],
)
def test_columns_that_are_none_are_told(columns: Any, sentence: str) -> None:
    own = type("Own", (Counting,), {"schema": lambda self, declared: columns})
    with pytest.raises(HeadraceError, match=rf"^\[source\] kind '.*:Own' {sentence}"):
        calls.schema(own(), {})
    bound: Any = type("Own", (Promising,), {"bind": lambda self, schema: columns})("mine", None)
    with pytest.raises(HeadraceError, match=sentence.replace("schema", "bind")):
        calls.bind(bound, {})


def test_a_source_has_a_format() -> None:
    own = type("Own", (Counting,), {"format": None})
    with pytest.raises(UserError, match=r":Own' has None as its 'format', expected a Format"):
        calls.construct("source", own, types.Source, None)


class Doubling(source()):  # type: ignore[misc]
    """Says with each piece that it begins again."""

    changes: ClassVar[Any] = staticmethod(lambda records: {"next": 0})


class Unclosed(source()):  # type: ignore[misc]
    def close(self) -> None:
        raise RuntimeError("no way")


# --------------------------------------------------------------------------------------- a format


class Broken(RawText):
    """Lines of text, and then what its class makes of them."""

    def schema(self, declared: Schema) -> Schema:
        return {"value": pl.String()}

    def decode(self, records: Records, schema: Schema) -> Any:
        return self.change(*super().decode(records, {"value": pl.String()}))

    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        raise NotImplementedError


class Halving(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame.head(frame.height // 2), rejects


class Ending(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return next(iter(()))


class Renaming(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame.rename({"value": "v"}), rejects


class Misplacing(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame.with_columns(pl.col("_position") + 1), rejects


class Alone(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame


class Wording(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame[3:], ["bad"]


class Blank(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame[1:], [None]


class Reasonless(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        rows = frame[:1].with_columns(detail=pl.lit("odd"))
        return frame[1:], [Rejects(stage="decode", reason="", rows=rows)]


class Unplaced(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        return frame[1:], [Rejects(stage="decode", reason="odd", rows=frame[:1])]


class Rejecting(Broken):
    def change(self, frame: pl.DataFrame, rejects: list[Rejects]) -> Any:
        odd = pl.col("value").str.contains("^[0-9]*[13579],")
        rows = frame.filter(odd).select("_partition", "_position", "value")
        rows = rows.with_columns(detail=pl.lit("odd"))
        return frame.filter(~odd), [*rejects, Rejects(stage="decode", reason="odd", rows=rows)]


# -------------------------------------------------------------------------------------- a learner


class Mean(types.Learner):
    """A learner of one's own that always says 0; of the third batch what its class says."""

    class Settings(types.Settings):
        """None."""

    class Training(types.Settings):
        """None."""

    def __init__(self, settings: Settings, training: Training, features: Features) -> None:
        super().__init__(settings, training, features)
        self.batches = 0

    def learn(self, batch: Batch) -> Any:
        self.batches += 1
        zeros = np.zeros(len(batch))
        return self.third(zeros) if self.batches == 3 else Step(scores=zeros, loss=0.0)

    def third(self, zeros: Any) -> Any:
        return Step(scores=zeros, loss=0.0)

    def predict(self, tensors: Any) -> Any:
        return np.zeros(len(tensors))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]


class Silent(Mean):
    def third(self, zeros: Any) -> None: ...


class Short(Mean):
    def third(self, zeros: Any) -> Step:
        return Step(scores=zeros[1:], loss=0.0)


class Listing(Mean):
    def third(self, zeros: Any) -> Step:
        return Step(scores=zeros.tolist(), loss=0.0)


class Lossless(Mean):
    def third(self, zeros: Any) -> Any:
        return Step(scores=zeros, loss=None)  # type: ignore[arg-type]


class Masking(Mean):
    def third(self, zeros: Any) -> Any:
        return Step(scores=zeros, loss=0.0, not_learned=zeros)


class Stateless(Mean):
    def state_dict(self) -> Any:
        return None


class Forgetting(Mean):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches = state["weights"]


class Stopping(Mean):
    def third(self, zeros: Any) -> Step:
        raise StopIteration


class Unknowing(Mean):
    def third(self, zeros: Any) -> Step:
        return Step(scores=zeros + np.nan, loss=0.0)


class Keeping(Mean):
    def state_dict(self) -> dict[str, Any]:
        return {"batches": np.int64(self.batches)}


class Skewed(Mean):
    @classmethod
    def quantiles(cls, training: Any) -> tuple[float, ...]:
        return (0.1, 0.9)


class Beyond(Mean):
    @classmethod
    def quantile(cls, training: Any) -> float | None:
        return 90.0


class Noise(Augment):
    """An augment of one's own that says as its class does."""

    def __init__(self, answer: Callable[[Tensors], Any]) -> None:
        super().__init__("noise", AugmentSettings())
        self.answer = answer

    def bind(self, context: object) -> None: ...

    def apply(self, tensors: Tensors, rng: np.random.Generator) -> Any:
        return self.answer(tensors)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda tensors: None, "returned None from apply of 2 rows: expected as many rows"),
        (lambda tensors: (tensors.slice(0, 1), 1), "returned 1 rows and 1 from apply of 2 rows"),
        (lambda tensors: next(iter(())), "raised StopIteration"),
    ],
)
def test_an_augment_that_gives_other_rows_is_told(
    answer: Callable[[Tensors], Any], sentence: str
) -> None:
    codes = torch.zeros((2, 0), dtype=torch.int64)
    rows = Tensors(numeric=torch.zeros((2, 1)), categories=codes, target=torch.zeros(2))
    with pytest.raises(HeadraceError, match=rf"^\[augment.noise\] kind '.*:Noise' {sentence}"):
        Augmentation([Noise(answer)])(rows, 0)


# ------------------------------------------------------------------------------------ the command

PIPELINE = """\
name = "own"
folder = "run"
[source]
kind = "files"
path = "{data}"
{source}
[sink]
kind = "files"
path = "out"
format = "ndjson"
[loader]
batch_rows = 1000
[service]
enabled = false
{more}
"""
MODEL = '[model]\nkind = "{}"\ntask = "regression"\ntarget = "y"\nnumeric = ["id"]\n'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a pipeline over `ROWS` rows whose `y` is 10 times their number."""

    def make(more: str = "", source: str = "", name: str = "d.csv") -> Path:
        monkeypatch.chdir(tmp_path)
        rows = "".join(f"{i},{10 * i}\n" for i in range(ROWS))
        (tmp_path / name).write_text(("id,y\n" if name == "d.csv" else "") + rows)
        file = tmp_path / "p.toml"
        file.write_text(PIPELINE.format(data=name, source=source, more=more))
        return file

    return make


def of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def fails(headrace: Headrace, command: str, file: Path) -> str:
    code, _, err = headrace(command, file)
    said = err.splitlines()[-1]
    assert (code, said[:10]) == (1, "headrace: "), err
    return said


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Sampling, " was given 1,000 rows and returned 500, with 0 rejected and 0 added"),
        (Holding, "The state of [scrub.mine] holds a value of type set in stages.mine.seen"),
    ],
)
def test_a_stage_is_found_by_check_and_ends_a_run(
    kind: type, sentence: str, write: Write, headrace: Headrace, tmp_path: Path
) -> None:
    file = write(f'[scrub.mine]\nkind = "{of(kind)}"\n')
    for command in ("check", "run"):
        said = fails(headrace, command, file)
        assert sentence in said
        assert "[scrub.mine]" in said
    assert not list((tmp_path / "out").glob("*.ndjson"))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Doubling, "read Records whose last position is 4 and whose next is 0: expected"),
        (Unclosed, "raised RuntimeError: no way"),
    ],
)
def test_a_source_is_found_by_check_and_ends_a_run(
    kind: type, sentence: str, write: Write, headrace: Headrace
) -> None:
    file = write()
    text = file.read_text().replace('kind = "files"\npath = "d.csv"', f'kind = "{of(kind)}"')
    file.write_text(text)
    for command in ("check", "run"):
        assert f"[source] kind '{of(kind)}' {sentence}" in fails(headrace, command, file)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Halving, "1,000 records and decoded 500 rows, with 0 rejected: expected one row or one"),
        (Ending, "raised StopIteration"),
        (Renaming, "decoded no column 'value', expected String"),
        (Misplacing, "are not those of their records"),
        (Wording, "rejects a builtins.str: expected a list of engine.types.Rejects"),
        (Blank, "rejects None: expected a list of engine.types.Rejects"),
        (Reasonless, "rejects rows whose reason is '': expected a word"),
        (Unplaced, "rejects rows without the column 'detail': expected the columns _partition"),
        (Alone, "decoded a polars.dataframe.frame.DataFrame: expected a polars.DataFrame and a"),
    ],
)
def test_a_format_is_found_by_check_and_ends_a_run(
    kind: type, sentence: str, write: Write, headrace: Headrace
) -> None:
    file = write(source=f'format = "{of(kind)}"', name="d.txt")
    for command in ("check", "run"):
        said = fails(headrace, command, file)
        assert f"[source] format '{of(kind)}' " in said
        assert sentence in said


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Silent, "returned None from learn: expected an engine.types.Step"),
        (Short, "returned a Step with scores that are float64 of the shape (999,): expected"),
        (Listing, "returned a Step with scores that are a builtins.list: expected"),
        (Stopping, "raised StopIteration"),
        (Lossless, "returned a Step whose loss is None: expected a number, nan without a step"),
        (Masking, "returned a Step whose not_learned is float64 of the shape (1000,): expected"),
        (Stateless, "returned None from state_dict: expected a dict, name -> plain value"),
    ],
)
def test_a_learner_that_gives_no_scores_ends_a_run(
    kind: type, sentence: str, write: Write, headrace: Headrace
) -> None:
    said = fails(headrace, "run", write(MODEL.format(of(kind))))
    assert f"[model] kind '{of(kind)}' {sentence}" in said


def test_a_learners_state_is_looked_at_before_it_learns(write: Write, headrace: Headrace) -> None:
    file = write(MODEL.format(of(Keeping)))
    for command in ("check", "run"):
        said = fails(headrace, command, file)
        assert "The state of [model] holds the numpy scalar np.int64(" in said
        assert "in work.learner.batches" in said


def test_quantiles_without_a_median_are_told(write: Write, headrace: Headrace) -> None:
    for command in ("check", "run"):
        said = fails(headrace, command, write(MODEL.format(of(Skewed))))
        assert f"[model] kind '{of(Skewed)}' returned (0.1, 0.9) from quantiles: expected" in said
        said = fails(headrace, command, write(MODEL.format(of(Beyond))))
        assert f"[model] kind '{of(Beyond)}' returned 90.0 from quantile: expected a share" in said


def test_a_misspelt_member_is_told_by_check_and_once_by_a_run(
    write: Write, headrace: Headrace
) -> None:
    file = write(f'[scrub.mine]\nkind = "{of(Slipping)}"\n')
    for command, code in (("check", 2), ("run", 0)):
        done, out, err = headrace(command, file)
        assert done == code, err
        said = " ".join((out + err).split())
        for slip, meant in (("snapshots", "snapshot"), ("restored", "restore")):
            sentence = f"Slipping.{slip} is never called: a stage may have '{meant}'; is that meant"
            assert said.count(sentence) == 1


def test_a_learner_that_cannot_restore_is_named(write: Write, headrace: Headrace) -> None:
    file = write(MODEL.format(of(Forgetting)))
    assert headrace("run", file)[0] == 0
    for command in ("check", "run"):
        _, out, err = headrace(command, file)
        said = " ".join((out + err).split())
        assert f"cannot be restored by [model] kind '{of(Forgetting)}' (KeyError: 'w" in said
        assert "let a class of your own restore what it saved" in said
        assert "layout" not in said


def test_model_and_baseline_are_judged_by_the_rows_that_have_a_score(
    write: Write, headrace: Headrace, tmp_path: Path
) -> None:
    more = "[dead_letters]\nlimit = 0.5\n" + MODEL.format(of(Unknowing))
    code, out, err = headrace("run", write(more))
    assert code == 0, err
    assert "3,000 read = 2,000 learned + 1,000 rejected  (predict: non_finite 1,000)" in out
    whole = json.loads((tmp_path / "run/report.json").read_text())["all"]
    assert whole["rows"] == 2_000
    assert whole["mae"] == pytest.approx(np.mean(10 * np.arange(2_000)))
    last = whole["baselines"]["last value"]
    assert (last["rows"], last["mae"]) == (1_999, 10.0)
    assert last["model_mae"] == pytest.approx(np.mean(10 * np.arange(1, 2_000)))


def test_rejects_of_a_format_count(write: Write, headrace: Headrace) -> None:
    """A format of one's own may reject, in any order."""
    more = "[dead_letters]\nlimit = 1\n"
    file = write(more, source=f'format = "{of(Rejecting)}"', name="d.txt")
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert "3,000 read = 1,500 cleaned + 1,500 rejected" in out
