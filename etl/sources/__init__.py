"""Readers of external data, each from its files to the raw tables."""
