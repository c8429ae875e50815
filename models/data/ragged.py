"""Ragged rows, laid out one after another: the row of every entry, and its place in the row."""

import numpy as np

from models.data.arrays import IntArray


def rows_and_places(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Returns (row, place in the row, from 0) of every entry; for lengths 2, 0, 1: rows 0 0 2, places 0 1 0."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
