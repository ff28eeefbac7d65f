"""Builds the parts of a pipeline from its file, each on first use."""
