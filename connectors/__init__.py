"""Sources, sinks and formats; see README.md beside this file. Importing this loads no connector."""

SOURCES = {
    "files": "connectors.files.source:FilesSource",
    "kafka": "connectors.kafka.source:KafkaSource",
    "memory": "connectors.memory:MemorySource",
}
"""``kind`` in ``[source]`` -> import string."""

SINKS = {
    "files": "connectors.files.sink:FilesSink",
    "kafka": "connectors.kafka.sink:KafkaSink",
    "memory": "connectors.memory:MemorySink",
}
"""``kind`` in ``[sink]`` -> import string."""

DEAD_LETTER_SINKS = {
    "files": "connectors.files.sink:FileDeadLetterSink",
    "kafka": "connectors.kafka.dead_letters:KafkaDeadLetterSink",
}
"""``kind`` in ``[dead_letters]`` -> import string."""
