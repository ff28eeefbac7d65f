"""Stages that change numbers."""
