"""The nouns of headrace, used by all other packages.

One batch, one direction::

    Source.read -> Records -> Format.decode -> Stage.apply ... -> collate -> Learner.learn |
    Predictor.predict -> Sink.write
                                                     commit(mark) <- the only arrow back

A position always means the NEXT one to read. A batch carries the `Mark` after its last row, so
nothing that still sits in a queue can be committed: only a batch in the consumer's hand has a mark
to give.

This module imports polars, numpy, pydantic and of headrace `engine.errors` alone; every
other module may import it.
"""

from __future__ import annotations

from engine.errors import HeadraceError, UnreadableFile, UserError, first_line, nearest
from engine.types.batch import Batch, TimedWork, bytes_as_hex
from engine.types.contracts import (
    SAMPLE_BYTES,
    UNEXPLAINED,
    Augmenter,
    Buffered,
    Format,
    GraphBuilder,
    GraphColumn,
    Learner,
    Predictor,
    SharedSource,
    Sink,
    Source,
    Stage,
    Step,
    Transaction,
)
from engine.types.features import (
    Features,
    KeyedState,
    class_indexes,
    label_value,
    predicted_classes,
)
from engine.types.records import EndOfStream, Mark, Records, Rejects, Snapshot, Values, in_utc
from engine.types.scale import Scale, Scales, even_parts, scales_of_rows
from engine.types.schema import (
    BOOLEAN_VALUES,
    DELAY,
    DROPPED,
    MAX_NESTING,
    NO_TIMESTAMP,
    PARAMETRIC_TYPES,
    PART,
    PARTITION,
    POSITION,
    RESERVED,
    TYPE_EXAMPLES,
    TYPES,
    WILDCARD,
    Schema,
    Unit,
    element_type,
    expand_schema,
    field_types,
    is_deep,
    is_pattern,
    only_named,
    parse_schema,
    parse_type,
    require,
    require_names,
    training,
    type_name,
)
from engine.types.settings import (
    NANOSECONDS,
    Duration,
    Name,
    Names,
    Settings,
    nanoseconds,
)
from engine.types.tensors import DeviceTensors, Padded, Ragged, Sparse, Tensors, bucket, tensor
from engine.types.transforms import Affine, Clip, Codes, Fill, Power, Transform

__all__ = [
    "BOOLEAN_VALUES",
    "DELAY",
    "DROPPED",
    "MAX_NESTING",
    "NANOSECONDS",
    "NO_TIMESTAMP",
    "PARAMETRIC_TYPES",
    "PART",
    "PARTITION",
    "POSITION",
    "RESERVED",
    "SAMPLE_BYTES",
    "TYPES",
    "TYPE_EXAMPLES",
    "UNEXPLAINED",
    "WILDCARD",
    "Affine",
    "Augmenter",
    "Batch",
    "Buffered",
    "Clip",
    "Codes",
    "DeviceTensors",
    "Duration",
    "EndOfStream",
    "Features",
    "Fill",
    "Format",
    "GraphBuilder",
    "GraphColumn",
    "HeadraceError",
    "KeyedState",
    "Learner",
    "Mark",
    "Name",
    "Names",
    "Padded",
    "Power",
    "Predictor",
    "Ragged",
    "Records",
    "Rejects",
    "Scale",
    "Scales",
    "Schema",
    "Settings",
    "SharedSource",
    "Sink",
    "Snapshot",
    "Source",
    "Sparse",
    "Stage",
    "Step",
    "Tensors",
    "TimedWork",
    "Transaction",
    "Transform",
    "Unit",
    "UnreadableFile",
    "UserError",
    "Values",
    "bucket",
    "bytes_as_hex",
    "class_indexes",
    "element_type",
    "even_parts",
    "expand_schema",
    "field_types",
    "first_line",
    "in_utc",
    "is_deep",
    "is_pattern",
    "label_value",
    "nanoseconds",
    "nearest",
    "only_named",
    "parse_schema",
    "parse_type",
    "predicted_classes",
    "require",
    "require_names",
    "scales_of_rows",
    "tensor",
    "training",
    "type_name",
]
