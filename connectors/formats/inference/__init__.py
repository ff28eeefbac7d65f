"""Types, dialect and encoding of a file, inferred from its first bytes."""
