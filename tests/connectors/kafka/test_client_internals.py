"""kafka-python from inside: what `connectors.kafka.client_internals` leans on is where it was."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import kafka
import pytest
from kafka import KafkaConsumer
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.producer.future import FutureRecordMetadata
from kafka.producer.kafka import KafkaProducer
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.sender import Sender
from kafka.protocol.frame import KafkaBytes
from kafka.protocol.parser import KafkaProtocol
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder

import connectors.kafka
from connectors.kafka.client_internals import ColumnarRecords, require_known_client
from tests.broker import shared_broker

FOLDER = Path(connectors.kafka.__file__).parent
PUBLIC = {"kafka", "kafka.errors"}
"""The modules of kafka-python that any file may import from, and those of the assignors."""
SIGNATURES: dict[Any, str] = {
    Fetcher.PartitionRecords._unpack_records: "(self, tp, records, key_deserializer, "
    "value_deserializer)",
    ProducerBatch.__init__: "(self, tp, records, now=None)",
    MemoryRecordsBuilder.__init__: "(self, magic, compression_type, batch_size, offset=0, "
    "transactional=False, producer_id=-1, producer_epoch=-1, base_sequence=-1)",
    FutureRecordMetadata.__init__: "(self, produce_future, batch_index, timestamp_ms, checksum, "
    "serialized_key_size, serialized_value_size, serialized_header_size)",
    RecordAccumulator.begin_flush: "(self)",
    RecordAccumulator._tp_lock: "(self, tp)",
    KafkaProducer.partitions_for: "(self, topic)",
    KafkaNetClient.await_ready: "(self, node_id, timeout_ms=30000)",
    KafkaNetClient.connection_delay: "(self, node_id)",
}


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [(Fetcher.PartitionRecords, "drain", "PartitionRecords has no 'drain'"),
     (KafkaConnectionManager, "wait_for", "KafkaConnectionManager has no 'wait_for'"),
     (DefaultRecordBatch, "next_offset", "DefaultRecordBatch has no 'next_offset'")],
)  # fmt: skip
def test_a_client_that_lacks_a_part_is_refused(
    owner: type, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError, match=said) as caught:
        require_known_client()
    assert f"kafka-python {kafka.__version__} is not the client" in str(caught.value)
    assert "install 'kafka-python==3.0.12'" in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(KafkaConsumer, "_fetcher"), (KafkaConnection, "parser"), (ClusterMetadata, "_topic_ids")],
)
def test_so_is_one_whose_objects_lack_it(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(self: object) -> None:
        """A constructor that sets nothing."""

    monkeypatch.setattr(owner, "__init__", without)
    with pytest.raises(ImportError, match=f"{owner.__name__} has no '_?[a-z]"):
        require_known_client()
    monkeypatch.undo()
    require_known_client()


def private_uses(path: Path) -> list[str]:
    """What a file takes from inside kafka-python: imports of its inner modules, and private
    attributes of its clients."""
    uses = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kafka":
            module = node.module or ""
            if module not in PUBLIC and not module.startswith("kafka.coordinator.assignors."):
                uses.append(module)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            if owner.rpartition(".")[2].strip("_") in {"consumer", "producer", "made", "client"}:
                uses.append(f"{owner}.{node.attr}")
    return uses


def test_only_one_file_knows_the_client_from_inside() -> None:
    used = {str(path.relative_to(FOLDER)): private_uses(path) for path in FOLDER.rglob("*.py")}
    assert len(used.pop("client_internals.py")) > 20
    assert {name: uses for name, uses in used.items() if uses} == {}


def test_signatures_are_as_they_were() -> None:
    assert {call: str(inspect.signature(call)) for call in SIGNATURES} == SIGNATURES


def test_what_only_the_source_code_tells_is_as_it_was() -> None:
    """Names that are known may still be used in another way; a version that does fails here."""
    assert DefaultRecordBatch.__slots__ == (
        "_buffer", "_header_data", "_pos", "_num_records", "_next_record_index", "_decompressed"
    )  # fmt: skip
    source = inspect.getsource(RecordAccumulator)
    for used in ("self._batches[tp]", "self._incomplete.add(batch)", "_flushes_in_progress"):
        assert used in source
    split = inspect.getsource(RecordAccumulator.split_and_reenqueue)
    assert "batch._record_futures[future_index]" in split
    assert "original_future.rebind(" in split
    assert inspect.getsource(Sender).count("elif not self._client.await_ready(target_node,") == 2


def test_a_response_is_gathered_in_a_buffer_of_the_parser() -> None:
    parser = KafkaProtocol()
    assert parser._rbuffer is None
    assert parser.receive_bytes((8).to_bytes(4, "big") + b"ab") == []
    assert isinstance(parser._rbuffer, KafkaBytes)
    assert parser._rbuffer.tell() == 2


def test_a_client_of_a_real_broker_has_the_parts() -> None:
    assert issubclass(ColumnarRecords, Fetcher.PartitionRecords)
    servers = shared_broker().bootstrap_servers
    consumer = KafkaConsumer(bootstrap_servers=servers)
    assert isinstance(consumer._fetcher, Fetcher)
    assert inspect.iscoroutinefunction(consumer._manager._build_transport)
    assert isinstance(consumer._manager, KafkaConnectionManager)
    assert isinstance(consumer._cluster, ClusterMetadata)
    assert isinstance(consumer._manager._conns, dict)
    assert isinstance(consumer._manager._auth_failures, dict)
    assert callable(consumer._net.call_soon_threadsafe)
    member = KafkaConsumer(bootstrap_servers=servers, group_id="seam")
    assert member._coordinator._join_task is None
    member.close()
    consumer.close()
