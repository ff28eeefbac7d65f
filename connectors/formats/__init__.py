"""Bytes to columns and back: CSV, NDJSON, Avro, text, and columnar input whose types are
checked."""
