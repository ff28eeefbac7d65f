"""The Python side of compiled walks over bytes."""
