"""Classes that the pipeline file leaves out: found where they can be known, the same in a resumed
run, and otherwise one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.running.labels import in_order
from tests.pipelines.conftest import Headrace, Rows, Small

Labelled = Callable[..., Path]
SCHEMA = 'n = "int64"\nkey = "string"\ny = "float64"\n'


@pytest.fixture
def labelled(tmp_path: Path, rows: Rows, small: Small) -> Labelled:
    """Writes the small pipeline with a column `label` of these values, over and over, as target,
    in a file that says its types itself."""

    def write(
        values: list[Any], keys: str = 'task = "binary"', more: str = "", n: int = 200
    ) -> Path:
        label = pl.Series("label", values * (n // len(values) + 1))[:n]
        rows(n).with_columns(label).write_parquet(tmp_path / "data.parquet")
        every = '[source.schema]\na = "float64"\nb = "float64"\n' + SCHEMA
        return small(
            tmp_path / "data.parquet",
            (every, ""),
            ('target = "y"', f'target = "label"\n{keys}'),
            ("interval_batches = 4", "interval_batches = 1"),
            more=more,
        )

    return write


def kept(tmp_path: Path) -> list[str]:
    found: list[str] = json.loads((tmp_path / "run" / "schema.json").read_text())["classes"]
    return found


@pytest.mark.parametrize(
    ("values", "keys", "classes"),
    [
        ([True, False], 'task = "binary"', ["false", "true"]),
        ([True], 'task = "binary"', ["false", "true"]),
        ([True, False], "", ["false", "true"]),
        (["yes", "no", None], 'task = "binary"', ["no", "yes"]),
        (["yes", "no"], "", ["no", "yes"]),
        (["c", "a", "b"], "", ["a", "b", "c"]),
        ([1, 0], 'task = "binary"', ["0", "1"]),
        ([1.0, 0.0, float("nan")], 'task = "binary"', ["0.0", "1.0"]),
        ([10, 9, 100], 'task = "multiclass"', ["9", "10", "100"]),
        (["10", "9", "-1", "9.0"], 'task = "multiclass"', ["-1", "9", "10"]),
    ],
)
def test_classes_are_found_and_written_down(
    values: list[Any], keys: str, classes: list[str], labelled: Labelled, headrace: Headrace,
    results: Callable[[], pl.DataFrame], tmp_path: Path,
) -> None:  # fmt: skip
    code, _, err = headrace("run", labelled(values, keys))
    assert code == 0, err
    assert kept(tmp_path) == classes
    assert set(results()["prediction"]) <= set(classes)
    assert ("the labels of all 200 rows" in err) == (not isinstance(values[0], bool))


def test_numbers_without_a_task_are_predicted(labelled: Labelled, headrace: Headrace) -> None:
    code, out, _ = headrace("check", labelled([1, 0], ""))
    assert code == 0, out


@pytest.mark.parametrize(
    ("values", "keys", "sentence"),
    [
        (["no"], 'task = "binary"', "'label' has 'no' in all 200 rows: name them all, as in "
         'classes = ["no", "other"].'),
        (["no"], "", "'label' has 'no' in all 200 rows: name them all"),
        ([None, None, "x", "y", "z"], 'task = "binary"', "'label' has 'x', 'y', 'z' in all 200"),
        ([0.5, 1.5], 'task = "binary"', "numbers that are no classes"),
        ([f"value {i}" for i in range(150)], "", "at most 100 different short values"),
        (["a long text that somebody wrote about what was bought last week", "b"], "",
         "at most 100 different short values"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_known_are_a_sentence(
    values: list[Any], keys: str, sentence: str, labelled: Labelled,
    headrace: Headrace, tmp_path: Path,
) -> None:  # fmt: skip
    code, out, err = headrace("run", labelled(values, keys))
    assert code == 2, out
    assert sentence in err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_has_the_classes_that_it_began_with(
    labelled: Labelled, headrace: Headrace, tmp_path: Path, letters: Callable[[], pl.DataFrame]
) -> None:
    file = labelled(["m", "z"], 'task = "multiclass"')
    assert headrace("run", file)[0] == 0
    frame = pl.read_parquet(tmp_path / "data.parquet")
    more = frame.with_columns(
        label=pl.when(pl.col("n") == 7).then(pl.lit("a")).otherwise(pl.col("label"))
    )
    folder = tmp_path / "more"
    folder.mkdir()
    frame.write_parquet(folder / "0.parquet")
    more.write_parquet(folder / "1.parquet")
    text = file.read_text().replace("data.parquet", "more/*.parquet")
    (tmp_path / "data.parquet").rename(tmp_path / "gone.parquet")
    (folder / "0.parquet").unlink()
    (folder / "0.parquet").symlink_to(tmp_path / "gone.parquet")
    file.write_text(text)
    code, out, err = headrace("run", file)
    assert code == 0, out + err
    assert kept(tmp_path) == ["m", "z"]
    assert letters()["detail"].to_list() == ["Expected a label of m, z ([model] classes); got 'a'."]
    assert headrace("run", file, "--fresh")[0] == 0
    assert kept(tmp_path) == ["a", "m", "z"]


def test_classes_that_a_run_so_far_did_not_have_are_refused(
    labelled: Labelled, headrace: Headrace, tmp_path: Path
) -> None:
    file = labelled(["m", "z"])
    assert headrace("run", file)[0] == 0
    path = tmp_path / "run" / "schema.json"
    path.write_text(path.read_text().replace('"m"', '"b"'))
    code, _, err = headrace("run", file)
    assert code == 2
    assert "was written with another classes" in err


@pytest.mark.parametrize(
    ("values", "code"), [([True, False], 0), (["yes", "no"], 2)], ids=["bool", "text"]
)
def test_a_source_without_an_end_says_only_a_bools_classes(
    values: list[Any], code: int, labelled: Labelled, headrace: Headrace
) -> None:
    file = labelled(values)
    file.write_text(
        file.read_text().replace('kind = "files"\npath', 'kind = "files"\nfollow = true\npath', 1)
    )
    done, out, err = headrace("check", file)
    assert done == code, out + err
    assert ("'label' has 'no', 'yes' in the first 200 rows" in err.replace("\n", " ")) == (
        code == 2
    )


def test_equal_numbers_are_one_class() -> None:
    assert in_order({"1.0", "1", "true", "0"}) == ("0", "1")
    assert in_order({"b", "10", "9"}) == ("10", "9", "b")


@pytest.mark.parametrize(
    ("values", "task", "said"),
    [
        ([1, 0], "", "it has 2 different whole numbers in {} 200 {}"),
        ([1.0, 0.0, None], "", "set [model] task = 'binary'."),
        ([1, 2, 3], "", "set [model] task = 'multiclass'."),
        ([1.5, 0.0], "", ""),
        ([7], "", "and it is 7 in {} 200 {}: nothing can be learned of one value."),
        ([1, 0], 'task = "regression"', ""),
    ],
)
def test_numbers_that_may_be_classes_are_told_with_the_other_task(
    values: list[Any], task: str, said: str, labelled: Labelled, headrace: Headrace
) -> None:
    file = labelled(values, task)
    for command, words in (("check", ("the", "sampled rows")), ("run", ("all", "rows"))):
        code, out, err = headrace(command, file)
        told = " ".join((out + err).split())
        assert code == 0, err
        assert told.count("[model] task is regression, as 'label' holds numbers") == bool(said)
        assert said.format(*words) in told


def test_a_target_without_any_label_is_told_so(labelled: Labelled, headrace: Headrace) -> None:
    code, _, err = headrace("run", labelled([None], 'task = "binary"'))
    assert code == 2
    assert "no row has a label: 'label' is empty in all 200 rows. Choose another target" in err
    assert "other" not in err.replace("another", "")
