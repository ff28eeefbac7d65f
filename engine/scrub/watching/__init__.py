"""Stages that watch the stream for anomalies and drift."""
