"""Turns feature tables into releases: audit, publication, reading, export."""
