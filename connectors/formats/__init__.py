"""Bytes to columns and back: CSV, NDJSON, Avro, text, and columns that only need their types
checked."""
