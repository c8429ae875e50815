"""Readers of data that others made, each from its files to the raw tables."""
