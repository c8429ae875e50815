"""Collapse check of vectors: distinct share, effective rank and mean cosine of a sample of unit vectors.

A collapsed training leaves unit vectors that pass every check of a single row but carry no information: they are all
similar, or lie on a line. The gate checks the vectors of a new model, the audit those of a run. Pure NumPy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_VECTORS = 20
"""Fewer vectors are not judged: a handful of POIs may be close together."""
MIN_DISTINCT_SHARE = 0.5
MIN_EFFECTIVE_RANK = 1.5
MAX_MEAN_COSINE = 0.999
"""Vectors of a model with little training reach 0.99 and may still differ; above this limit they do not."""
MAX_VECTORS = 4096
"""Size of the sample of vectors, evenly spaced."""
DECIMALS = 4
"""Vectors that agree to this many decimals count as equal."""


@dataclass(frozen=True)
class Spread:
    """Measures of the spread of vectors.

    Attributes:
        vectors: number of vectors in the sample.
        distinct_share: number of different vectors, as a share of all.
        effective_rank: exp(entropy) of the shares of variance about the mean (after Roy and Vetterli 2007); 1 = all
            on one line.
        mean_cosine: mean cosine of two different vectors.
    """

    vectors: int
    distinct_share: float
    effective_rank: float
    mean_cosine: float


def measure_spread(vectors: NDArray[np.floating]) -> Spread:
    """Measures the spread of unit vectors of different users or POIs, (rows, dim)."""
    step = max(1, -(-len(vectors) // MAX_VECTORS))
    rows = np.asarray(vectors[::step], dtype=np.float64)
    count = len(rows)
    if not count:
        return Spread(0, 1.0, float("nan"), float("nan"))
    distinct = len(np.unique(np.round(rows, DECIMALS), axis=0))
    total = rows.sum(axis=0)
    variances = np.linalg.eigvalsh(np.cov(rows.T, bias=True).reshape(rows.shape[1], -1)).clip(min=0.0)
    shares = variances[variances > 0] / variances.sum()
    effective_rank = float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 1.0
    # The squared length of the sum is the sum over all pairs; each unit vector adds 1 with itself.
    mean_cosine = float((total @ total - count) / (count * (count - 1))) if count > 1 else float("nan")
    return Spread(count, distinct / count, effective_rank, mean_cosine)


def describe_collapse(spread: Spread, what: str) -> list[str]:
    """Returns texts on what is wrong with the spread of vectors; empty = nothing, or too few vectors."""
    if spread.vectors < MIN_VECTORS:
        return []
    problems = []
    if not spread.distinct_share >= MIN_DISTINCT_SHARE:
        problems.append(
            f"{what}: {spread.distinct_share:.3f} of {spread.vectors} vectors differ from each other"
        )
    if not spread.effective_rank >= MIN_EFFECTIVE_RANK:
        problems.append(
            f"{what}: effective rank {spread.effective_rank:.2f}, so the vectors lie almost on a line"
        )
    if not spread.mean_cosine <= MAX_MEAN_COSINE:
        problems.append(f"{what}: two of them have cosine {spread.mean_cosine:.3f} on average")
    return problems
