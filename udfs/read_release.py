"""The import for ranking teams: reads a feature table of one release, with or without Spark (`releases/reader.py`)."""

from udfs.releases.reader import read_release

__all__ = ["read_release"]
