"""A user's class against its contract: what it lacks, misspells or has in another shape is one
sentence that names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import connectors
import models
from engine import types
from engine.config import load_class
from engine.scrub import STAGES
from engine.types import Batch, Format, Learner, Mark, Schema, Sink, Source, Stage, UserError
from engine.user_code.calls import construct
from engine.user_code.contract_checks import misspelt_members, require_contract
from models.augment import AUGMENTS, Augment


class NoSettings(types.Settings):
    """None."""


def build(base: type, **members: Any) -> Any:
    """A user's class `Own` of these members."""
    usual = {"__module__": __name__, "Settings": NoSettings, "Training": NoSettings}
    return type("Own", (base,), {**usual, **members})


def apply(self: Any, batch: Batch) -> Batch:
    return batch


def write(self: Any, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> None: ...


def read(self: Any, max_rows: int, max_bytes: int, timeout: float) -> None: ...


def decode(self: Any, records: Any, schema: Any) -> None: ...


def one(self: Any, given: Any) -> Any:
    return given


def none(self: Any) -> None: ...


SOURCE = {"schema": one, "read": read, "seek": one}
LEARNER = {"learn": one, "predict": one, "state_dict": none, "load_state_dict": one}
SINK = {"write": write, "flush": none}


def rows(self: Any, max_rows: int, max_bytes: int, timeout: float) -> Iterator[int]:
    yield 1


async def later(self: Any, batch: Batch) -> Batch:
    return batch


class Quacks:
    """Has what a stage has."""

    Settings = NoSettings
    apply = apply


WRONG: list[tuple[type, type, str]] = [
    (Quacks, Stage, "does not inherit engine.types.Stage, as a stage must: write class Quacks("),
    (build(Stage), Stage, "has no method 'apply', which every stage needs: see engine.types.Stage"),
    (build(Stage, aply=apply), Stage, "It has 'aply': is that meant?"),
    (build(Stage, apply=apply, Settings=None), Stage, "has no Settings: expected a nested class"),
    (
        build(Stage, apply=apply, snapshot=none),
        Stage,
        "has no method 'restore', which a stage with",
    ),
    (build(Stage, apply=apply, restore=one), Stage, "has no method 'snapshot', which a stage with"),
    (build(Stage, apply=none), Stage, "'apply' takes (self), expected (self, batch)"),
    (build(Stage, apply=later), Stage, "'apply' is async, and is never awaited"),
    (build(Stage, apply=3), Stage, "'apply' is a int, expected a method: def apply(self, batch)"),
    (build(Stage, apply=property(none)), Stage, "'apply' is a property, expected a method"),
    (build(Stage, apply=apply, remarks=["x"]), Stage, "'remarks' is a list, expected a method"),
    (build(Stage, apply=apply, scaled=none), Stage, "'scaled' is a method, expected a value"),
    (build(Stage, apply=apply, single_pass=none), Stage, "'single_pass' is a method"),
    (build(Stage, apply=apply, __init__=one), Stage, "'__init__' takes (self, given), expected"),
    (build(Source, **SOURCE | {"read": rows}), Source, "'read' is a generator (it has a yield)"),
    (build(Source, **SOURCE | {"read": one}), Source, "expected (self, max_rows, max_bytes, timeo"),
    (build(Learner, **LEARNER | {"predict": None}), Learner, "'predict' is a NoneType, expected"),
    (
        build(Learner, **{k: v for k, v in LEARNER.items() if k != "state_dict"}),
        Learner,
        "has no method 'state_dict', which every learner needs",
    ),
    (build(Sink, write=write), Sink, "has no method 'flush', which every sink needs"),
    (build(Sink, **SINK, restore=one), Sink, "has no method 'snapshot', which a sink with 'rest"),
    (build(Format, decode=one), Format, "'decode' takes (self, given), expected (self, records, s"),
    (
        build(Format, decode=decode, __init__=one),
        Format,
        "'__init__' takes (self, given), expected",
    ),
    (build(Augment), Augment, "every augment needs: see models.augment.Augment"),
]


@pytest.mark.parametrize(("cls", "contract", "sentence"), WRONG)
def test_what_a_class_lacks_is_told(cls: type, contract: type, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        require_contract(cls, contract, "mine")
    said = str(caught.value)
    assert said.startswith(f"[mine] kind '{cls.__module__}:{cls.__qualname__}'")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("cls", "contract"),
    [
        (build(Stage, apply=apply), Stage),
        (build(Stage, apply=apply, snapshot=none, restore=one), Stage),
        (build(Stage, apply=staticmethod(lambda batch, more=1: batch)), Stage),
        (build(Stage, apply=lambda *given: given), Stage),
        (build(Source, **SOURCE), Source),
        (build(Learner, **LEARNER, device="cuda", soft_targets=True), Learner),
        (build(Learner, **LEARNER, device=property(none)), Learner),
        (build(Sink, **SINK), Sink),
        (build(Format, decode=decode), Format),
    ],
)
def test_what_must_be_there_is_enough(cls: type, contract: type) -> None:
    require_contract(cls, contract, "mine")
    assert list(misspelt_members(cls, contract)) == []


@pytest.mark.parametrize(
    ("cls", "contract", "sentence"),
    [
        (build(Stage, apply=apply, vocabulary_size=none), Stage, "may have 'vocabulary_sizes'"),
        (build(Stage, apply=apply, remark=none), Stage, "may have 'remarks'; is that meant?"),
        (build(Stage, apply=apply, singlepass=True), Stage, "may have 'single_pass'"),
        (build(Learner, **LEARNER, soft_target=True), Learner, "may have 'soft_targets'"),
        (build(Learner, **LEARNER, augments_with=one), Learner, "may have 'augment_with'"),
        (build(Learner, **LEARNER, limit_memory=one), Learner, "inherit engine.types.Buffered"),
        (build(Source, **SOURCE, keep_alive=none), Source, "inherit engine.types.SharedSource"),
        (build(Sink, **SINK, count=none), Sink, "may have 'counts'"),
        (build(Format, decode=decode, resumes=none), Format, "may have 'resume'"),
    ],
)
def test_what_nobody_calls_is_told(cls: type, contract: type, sentence: str) -> None:
    (said,) = misspelt_members(cls, contract)
    assert sentence in said
    assert said.startswith("Own.")


class Scaling(Stage):
    """Uses what only looks like a member of the contract."""

    def apply(self, batch: Batch) -> Batch:
        return next(self.transform(one) for one in [batch])

    def transform(self, batch: Batch) -> Batch:
        return batch


def test_what_a_class_uses_itself_is_no_slip() -> None:
    assert list(misspelt_members(Scaling, Stage)) == []


@pytest.mark.parametrize(
    ("known", "contract"),
    [
        (connectors.SOURCES, Source),
        (connectors.SINKS, Sink),
        (connectors.DEAD_LETTER_SINKS, Sink),
        (STAGES, Stage),
        (models.LEARNERS, Learner),
        (AUGMENTS, Augment),
    ],
)
def test_every_class_of_the_house_is_what_its_contract_says(
    known: dict[str, str], contract: type
) -> None:
    for name in known:
        require_contract(load_class(name, known, "house"), contract, "house")


class Nameless(Stage):
    """Has an ``__init__`` that leaves out what the contract's sets."""

    def __init__(self, name: str, settings: Any) -> None: ...

    def apply(self, batch: Batch) -> Batch:
        return batch


def test_what_an_init_leaves_out_is_told() -> None:
    sentence = "has no 'name' once it is made: let its __init__ call super().__init__, or set self"
    with pytest.raises(UserError, match=re.escape(sentence)):
        construct("scrub.mine", Nameless, Stage, "mine", None)
    made = construct("scrub.mine", Scaling, Stage, "mine", None)
    assert (made.name, made.settings) == ("mine", None)


def test_defaults_do_nothing() -> None:
    stage = build(Stage, apply=apply)("s", SimpleNamespace())
    schema: Schema = {"a": pl.Int64()}
    assert stage.bind(schema) == schema
    assert (stage.snapshot(), stage.transforms(), stage.digest()) == (None, None, None)
    assert (stage.vocabulary_sizes(), stage.encoders(), list(stage.remarks())) == ({}, {}, [])
    source = build(Source, **SOURCE)(SimpleNamespace())
    mark = Mark()
    assert (source.commit(mark), source.lag(mark), source.progress(mark)) == (True, {}, None)
    assert (source.epochs, source.unbounded()) == (1, False)
