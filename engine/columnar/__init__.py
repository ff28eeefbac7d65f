"""Arithmetic on columns; nothing of threads."""
