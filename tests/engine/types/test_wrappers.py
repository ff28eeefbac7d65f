"""What stands around another component answers for it: each member of the contract is its own, or
stands here with the reason why the base's default is right."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from connectors.dead_letters import FileDeadLetterSource, ReplayFormat
from connectors.formats.bounded import SizeLimited
from connectors.formats.file_content import FileContent, UnreadFiles
from connectors.formats.inference.misses import InferredTypes
from connectors.formats.values.hive import HivePartitions
from connectors.kafka.record_columns import RecordColumns
from connectors.kafka.value_checks import ValueFilter
from engine.loading.sources.mix import Mix, MixFormat
from engine.types import Format, Learner, SharedSource, Source
from engine.user_code.contract_checks import members
from models.challenge.challenger import ChampionChallenger
from models.learners.sampling import ResampledLearner

NO_SAY = {"schema": "the sources are asked, not their formats"}
ASKED_BEFORE = {
    **dict.fromkeys(("settings", "training"), "it reads its own, not the learner's"),
    **dict.fromkeys(
        (
            "baselines",
            "deviance_power",
            "device_of",
            "grows",
            "learns_by_batch",
            "lowest_label",
            "named_inputs",
            "named_state",
            "only_regression",
            "predicts_several",
            "quantile",
            "quantiles",
            "reads_inputs",
            "score_rounding",
            "sets_threads",
            "soft_targets",
            "vector_width",
        ),
        "asked of the learner's class, or of the learner before it is wrapped",
    ),
    "device": "set from the learner when it is made",
}
NOT_FORWARDED: Mapping[tuple[type, type], Mapping[str, str]] = {
    (Mix, SharedSource): {
        "settings": "set when it is made",
        "sample": "read by weight, as in a run",
        "unread": "asked by stages of their own sources, which are no mixes",
    },
    (FileDeadLetterSource, Source): {
        "settings": "it has none",
        "epochs": "a letter is read once",
        "unbounded": "it ends with the letters that are there",
        "can_be_reread": "files can",
        "keep_metadata": "letters hold it",
        "sample": "read from the letters",
        "reads_output_of": "it reads what a run wrote on purpose",
        "reads_file": "the same",
    },
    (MixFormat, Format): NO_SAY,
    (ReplayFormat, Format): NO_SAY,
    (SizeLimited, Format): {},
    (InferredTypes, Format): {},
    (HivePartitions, Format): {},
    (ValueFilter, Format): {},
    (RecordColumns, Format): {},
    (FileContent, Format): {},
    (UnreadFiles, Format): {},
    (ResampledLearner, Learner): {
        **ASKED_BEFORE,
        "torch_body": "the true shares of the classes are put back by nodes of ONNX",
    },
    (ChampionChallenger, Learner): ASKED_BEFORE,
}
"""Wrapper and contract -> members that it leaves to the base, and why."""


@pytest.mark.parametrize(("wrapper", "contract"), NOT_FORWARDED)
def test_every_member_is_forwarded_or_says_why(wrapper: type, contract: type) -> None:
    bases = wrapper.__mro__[: wrapper.__mro__.index(contract)]
    own = {name for base in bases for name in vars(base)}
    left = members(contract) - own
    assert left == set(NOT_FORWARDED[wrapper, contract]), wrapper.__name__
