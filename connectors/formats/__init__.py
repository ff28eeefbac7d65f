"""Bytes to columns: CSV, NDJSON, and columns that only need their types checked."""
