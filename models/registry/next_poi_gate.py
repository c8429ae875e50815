"""The next-POI part of the gate: MRR of a new bundle against popularity and the last champions on the same rows."""

from dataclasses import dataclass

from models.data.arrays import Float64Array
from models.evaluation.figures import rank_baselines
from models.evaluation.generator_choice import MAX_GATE_ROWS, GeneratorChoice, rank_by_stage, sample_rows
from models.evaluation.metrics import bootstrap_mean, digest_rows, exact_mean, reciprocal_values
from models.evaluation.release_split import EvaluationRows
from models.registry.champions import Champions
from models.serving.bundle import ModelBundle

TOLERANCE = 0.005
"""Allowed MRR deficit of a challenger to the best champion; less than the noise between two seeds."""
UNJUDGED = "there are no validation rows, so nothing says whether it is better than popularity"


@dataclass(frozen=True)
class GateVerdict:
    """The gate's verdict on generated POIs, on the same rows for all models.

    Attributes:
        metric: name of the compared metric.
        rows: number of compared rows.
        digest: digest of the row ids.
        popularity: metric of the baseline; None = there were no rows.
        challenger: metric of the new bundle; None = there were no rows.
        champion: metric of the best of the last champions; None = no champion can answer.
        champion_version: version of that champion.
        difference_low: lower end of the 95 % interval of challenger minus that champion.
        reasons: reasons against promotion; empty = promoted.
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
        rows: held-out validation rows; without them the challenger is not promoted.
        challenger: the new bundle.
        champions: the current and former champions of the same index version.
        choice: generator choice on the same rows; its ranks of the challenger are reused.
    """
    if rows is None or not len(rows.requests):
        return GateVerdict("mrr", 0, digest_rows([]), None, None, None, None, None, (UNJUDGED,))
    rows = sample_rows(rows, MAX_GATE_ROWS)
    requests = rows.requests
    baseline = rank_baselines(requests, rows.counts, catalogue=rows.catalogue)["popularity"]
    popularity = exact_mean(reciprocal_values(baseline))
    challenger_ranks = _reciprocal_ranks(rows, challenger) if choice is None else choice.reciprocal_ranks
    challenger_mrr = exact_mean(challenger_ranks)
    reasons = []
    if not challenger_mrr > popularity:
        reasons.append(f"MRR {challenger_mrr:.4f} does not beat popularity {popularity:.4f}")
    champion_ranks = {version: _reciprocal_ranks(rows, bundle) for version, bundle in champions.items()}
    best = max(champion_ranks, key=lambda version: exact_mean(champion_ranks[version]), default=None)
    champion_mrr, difference_low = None, None
    if best is not None:
        champion_mrr = exact_mean(champion_ranks[best])
        difference_low = bootstrap_mean(challenger_ranks - champion_ranks[best], requests.users).low
        if not challenger_mrr >= champion_mrr - TOLERANCE:
            reasons.append(
                f"MRR {challenger_mrr:.4f} is below that of the champion {best}, {champion_mrr:.4f}"
            )
    return GateVerdict(
        metric="mrr",
        rows=len(requests),
        digest=digest_rows(requests.row_ids.tolist()),
        popularity=popularity,
        challenger=challenger_mrr,
        champion=champion_mrr,
        champion_version=best,
        difference_low=difference_low,
        reasons=tuple(reasons),
    )


def _reciprocal_ranks(rows: EvaluationRows, bundle: ModelBundle) -> Float64Array:
    return reciprocal_values(rank_by_stage(rows, bundle, bundle.generator_stage))
