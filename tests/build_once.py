"""Folders that all test processes of a run share."""

from collections.abc import Callable
from pathlib import Path

BuildOnce = Callable[[str, Callable[[Path], object]], Path]
"""Name of a folder, and what fills it -> the folder, filled."""
