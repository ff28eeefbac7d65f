"""Prediction metrics, the decision threshold, and the evaluation beside baselines."""
