"""Local files: rows from CSV, NDJSON, Parquet and Arrow; results as numbered parts."""
