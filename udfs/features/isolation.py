"""Runs the model over a batch so that a row that makes it fail costs only that row.

The batch is cut into forward passes of similar length. A pass that fails is halved until the row is found
(bisection); every other row gets its result. In place of a failed row's result stands its error as text, for the
quarantine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")
MAX_ERROR_CHARS = 500


@dataclass(frozen=True)
class RowFailure:
    """Why the model gave no result for a row."""

    error: str


def run_isolated(
    compute: Callable[[pa.RecordBatch], Sequence[T | RowFailure]], batch: pa.RecordBatch, *, micro_batch: int
) -> list[T | RowFailure]:
    """Computes a result for each row of a batch, or the reason why there is none.

    Args:
        compute: gives one result per row of the batch that it gets, in order; it must not depend on the other
            rows. Where the model's result for a row is not usable, such as NaN, it gives a `RowFailure` itself,
            so that the other rows need not be computed again.
        batch: any number of rows, best sorted by length, since neighbours are padded to each other.
        micro_batch: rows per call. A small value limits how many rows are computed twice after a failure.

    Returns:
        One entry per row, in order.
    """
    results: list[T | RowFailure] = []
    for start in range(0, batch.num_rows, micro_batch):
        results += _bisect(compute, batch.slice(start, micro_batch))
    return results


def _bisect(
    compute: Callable[[pa.RecordBatch], Sequence[T | RowFailure]], batch: pa.RecordBatch
) -> list[T | RowFailure]:
    try:
        results = list(compute(batch))
    except Exception as error:  # any failure of one row leaves the other rows of the day unaffected
        if batch.num_rows == 1:
            return [RowFailure(f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS])]
        # One bad row among n costs about 2 log2(n) more calls; row by row it would be n.
        half = batch.num_rows // 2
        return [*_bisect(compute, batch.slice(0, half)), *_bisect(compute, batch.slice(half))]
    assert len(results) == batch.num_rows, f"{len(results)} results for {batch.num_rows} rows"
    return [*results]
