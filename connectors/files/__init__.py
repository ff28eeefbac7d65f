"""Local files: rows from CSV, NDJSON, Parquet, Arrow and others; results as numbered parts."""
