"""Which file is read next."""
