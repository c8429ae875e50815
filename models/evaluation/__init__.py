"""Figures of models and of baselines on held-out rows."""
