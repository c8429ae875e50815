"""What ranking teams import: a feature table as one release shows it, with Spark or without (`releases/reader.py`)."""

from udfs.releases.reader import read_release

__all__ = ["read_release"]
