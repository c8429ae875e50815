"""The next-POI half of the gate: MRR of a new bundle beside popularity and the last champions, on the same rows."""

from dataclasses import dataclass

from models.evaluation.figures import rank_baselines
from models.evaluation.generator_choice import MAX_GATE_ROWS, GeneratorChoice, rank_by_stage, sample_rows
from models.evaluation.metrics import FloatArray, bootstrap_mean, digest_rows, exact_mean, reciprocal_values
from models.evaluation.release_split import EvaluationRows
from models.registry.champions import Champions
from models.serving.bundle import ModelBundle

TOLERANCE = 0.005
"""MRR that a challenger may lie below the best of the champions: less than the noise between two seeds."""
UNJUDGED = "there are no validation rows, so nothing says whether it is better than popularity"


@dataclass(frozen=True)
class GateVerdict:
    """What the gate found on rows that all were asked.

    Attributes:
        metric: what is compared.
        rows: rows compared on.
        digest: digest of the row ids.
        popularity: the baseline's figure; None = there were no rows.
        challenger: the new bundle's; None = there were no rows.
        champion: the best of the last champions'; None = there is none that can answer.
        champion_version: which of them that is.
        difference_low: lower end of the 95 % interval of challenger minus that champion.
        reasons: why it is not promoted; empty = it is.
    """

    metric: str
    rows: int
    digest: str
    popularity: float | None
    challenger: float | None
    champion: float | None
    champion_version: str | None
    difference_low: float | None
    reasons: tuple[str, ...]


def judge_next_poi(
    rows: EvaluationRows | None,
    challenger: ModelBundle,
    champions: Champions,
    *,
    choice: GeneratorChoice | None = None,
) -> GateVerdict:
    """Compares generators by MRR on at most `MAX_GATE_ROWS` rows, chosen by their ids.

    Args:
        rows: held-out validation rows; without any nothing is compared, and the challenger stays one.
        challenger: the new bundle.
        champions: those in use now and before, for the same index version.
        choice: made of the same rows just before; spares ranking them by the challenger once more.
    """
    if rows is None or not len(rows.requests):
        return GateVerdict("mrr", 0, digest_rows([]), None, None, None, None, None, (UNJUDGED,))
    rows = sample_rows(rows, MAX_GATE_ROWS)
    requests = rows.requests
    baseline = rank_baselines(requests, rows.counts, catalogue=rows.catalogue)["popularity"]
    popularity = exact_mean(reciprocal_values(baseline))
    own = _reciprocal_ranks(rows, challenger) if choice is None else choice.reciprocal_ranks
    found = exact_mean(own)
    reasons = []
    if not found > popularity:
        reasons.append(f"MRR {found:.4f} does not beat popularity {popularity:.4f}")
    theirs = {version: _reciprocal_ranks(rows, bundle) for version, bundle in champions.items()}
    best = max(theirs, key=lambda version: exact_mean(theirs[version]), default=None)
    champion_mrr, difference_low = None, None
    if best is not None:
        champion_mrr = exact_mean(theirs[best])
        difference_low = bootstrap_mean(own - theirs[best], requests.users).low
        if not found >= champion_mrr - TOLERANCE:
            reasons.append(f"MRR {found:.4f} is below that of the champion {best}, {champion_mrr:.4f}")
    return GateVerdict(
        metric="mrr",
        rows=len(requests),
        digest=digest_rows(requests.row_ids.tolist()),
        popularity=popularity,
        challenger=found,
        champion=champion_mrr,
        champion_version=best,
        difference_low=difference_low,
        reasons=tuple(reasons),
    )


def _reciprocal_ranks(rows: EvaluationRows, bundle: ModelBundle) -> FloatArray:
    return reciprocal_values(rank_by_stage(rows, bundle, bundle.generator_stage))
