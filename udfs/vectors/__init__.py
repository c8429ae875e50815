"""Vectors of what POIs say and show: texts and pictures, through frozen encoders, for post-training."""
