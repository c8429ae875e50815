"""Do vectors tell things apart? Distinct share, effective rank and mean cosine of a sample of unit vectors.

A training that collapsed leaves unit vectors that pass every check of one row and say nothing: all alike, or on a line.
The gate looks at the vectors of a new model, the audit at those of a night. Pure numpy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_VECTORS = 20
"""Of fewer nothing is said: a handful of POIs may well lie close together."""
MIN_DISTINCT_SHARE = 0.5
MIN_EFFECTIVE_RANK = 1.5
MAX_MEAN_COSINE = 0.999
"""Vectors of a model that has learnt little lie at 0.99 and may still differ; nothing is told apart above this."""
MAX_VECTORS = 4096
"""Looked at: so many, evenly spaced, tell enough."""
DECIMALS = 4
"""Vectors that agree to so many are one."""


@dataclass(frozen=True)
class Spread:
    """How far vectors spread.

    Attributes:
        vectors: how many were looked at.
        distinct_share: different vectors among them, as a share of all.
        effective_rank: exp(entropy) of the shares of variance about the mean (after Roy and Vetterli 2007); 1 = all
            on one line.
        mean_cosine: of two different ones drawn at random.
    """

    vectors: int
    distinct_share: float
    effective_rank: float
    mean_cosine: float


def measure_spread(vectors: NDArray[np.floating]) -> Spread:
    """Measures the spread of unit vectors of different things, (rows, dim)."""
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
    # The squared length of the sum is that of all pairs together; each unit vector adds 1 with itself.
    mean_cosine = float((total @ total - count) / (count * (count - 1))) if count > 1 else float("nan")
    return Spread(count, distinct / count, effective_rank, mean_cosine)


def describe_collapse(spread: Spread, what: str) -> list[str]:
    """Says in words what is wrong with the spread of some vectors; empty = nothing, or too few to tell."""
    if spread.vectors < MIN_VECTORS:
        return []
    found = []
    if not spread.distinct_share >= MIN_DISTINCT_SHARE:
        found.append(
            f"{what}: {spread.distinct_share:.3f} of {spread.vectors} vectors differ from each other"
        )
    if not spread.effective_rank >= MIN_EFFECTIVE_RANK:
        found.append(
            f"{what}: effective rank {spread.effective_rank:.2f}, so the vectors lie almost on a line"
        )
    if not spread.mean_cosine <= MAX_MEAN_COSINE:
        found.append(f"{what}: two of them have cosine {spread.mean_cosine:.3f} on average")
    return found
