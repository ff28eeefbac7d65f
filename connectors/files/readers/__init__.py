"""Open files as rows: each reader gives the next rows of one file, with their positions."""
