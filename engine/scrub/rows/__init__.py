"""Stages that keep or drop rows."""
