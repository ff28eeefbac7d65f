"""Checkpoints, and when they are saved."""
