"""Metrics, timers, logs and the HTTP service."""
