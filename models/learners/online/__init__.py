"""Learners that take optimizer steps: scales, steps, losses, replay."""
