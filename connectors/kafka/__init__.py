"""Apache Kafka as a source and a sink, on kafka-python's client."""
