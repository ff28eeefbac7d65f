"""Stages that make columns."""
