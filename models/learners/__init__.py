"""Learners and their parts."""
