"""Measure models, score recorded rollouts, and make the tables and figures of the committed results."""
