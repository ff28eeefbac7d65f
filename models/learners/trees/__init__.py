"""Gradient-boosted trees, trained on a window of the newest rows."""
