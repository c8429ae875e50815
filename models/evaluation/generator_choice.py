"""Choice of the stage that generates POIs: the aligned one, unless it ranks held-out actions worse.

Alignment raises clicked POIs over other shown POIs; too strong an alignment lowers all other POIs. So the aligned and
the pre-trained stage are compared on validation rows before registration. `bundle.json` records the better one, and
the calibration of its P(new) on the same rows.
"""

import logging
from dataclasses import dataclass

import numpy as np

from models.data.arrays import Float64Array
from models.data.ranks import Ranks
from models.evaluation.metrics import digest_rows, exact_mean, reciprocal_values
from models.evaluation.new_places import fit_p_new
from models.evaluation.release_split import EvaluationRows
from models.serving.bundle import GENERATING_STAGES, ModelBundle, describe_bundle
from models.serving.inference import predict_new, rank_targets_by_model

LOGGER = logging.getLogger(__name__)
MAX_GATE_ROWS = 2_000


@dataclass(frozen=True)
class GeneratorChoice:
    """The result of the comparison of generating stages on held-out rows.

    Attributes:
        stage: the better stage, which generates.
        mrr: MRR by stage; empty without validation rows.
        reciprocal_ranks: reciprocal ranks of the better stage, by row of `sample_rows(rows, MAX_GATE_ROWS)`.
    """

    stage: str
    mrr: dict[str, float]
    reciprocal_ranks: Float64Array


def choose_generator(rows: EvaluationRows | None, bundle: ModelBundle) -> GeneratorChoice:
    """Compares the generating stages by MRR on at most `MAX_GATE_ROWS` rows and records the better in `bundle.json`.

    Args:
        rows: held-out validation rows, never test rows; without them the pre-trained stage generates, since the effect
            of alignment is unknown.
        bundle: a bundle that is not registered yet.
    """
    if rows is None or not len(rows.requests):
        LOGGER.warning("pretrain generates: there are no validation rows to compare stages on")
        describe_bundle(bundle, {"generator_stage": "pretrain", "generator_mrr": {}})
        return GeneratorChoice("pretrain", {}, np.zeros(0))
    stages = [stage for stage in GENERATING_STAGES if stage in bundle.stage_names]
    rows = sample_rows(rows, MAX_GATE_ROWS)
    reciprocal = {stage: reciprocal_values(rank_by_stage(rows, bundle, stage)) for stage in stages}
    mrr = {stage: exact_mean(values) for stage, values in reciprocal.items()}
    chosen = max(reversed(stages), key=mrr.__getitem__)  # a tie goes to the later stage
    LOGGER.info("%s generates: MRR on %d validation rows %s", chosen, len(rows.requests), mrr)
    calibration = fit_p_new(predict_by_stage(rows, bundle, chosen), ~rows.requests.returns())
    LOGGER.info("P(new) is calibrated on the same rows: %s", calibration)
    describe_bundle(
        bundle,
        {"generator_stage": chosen, "generator_mrr": mrr, "p_new_calibration": calibration._asdict()},
    )
    return GeneratorChoice(chosen, mrr, reciprocal[chosen])


def predict_by_stage(rows: EvaluationRows, bundle: ModelBundle, stage: str) -> Float64Array:
    """Returns P(new) of every row by a generating stage."""
    model, p_new = bundle.model(stage), np.zeros(len(rows.requests))
    for positions, batch in rows.batches(MAX_GATE_ROWS):
        p_new[positions] = predict_new(model, batch, rows.catalogue, finder=rows.finder)
    return p_new


def sample_rows(rows: EvaluationRows, most: int) -> EvaluationRows:
    """Returns at most `most` rows; the selection depends on the row ids, not on their order."""
    if len(rows.requests) <= most:
        return rows
    # Sorted by digest: row ids begin with the user, so sorting by name would select only a few users.
    order = np.array([digest_rows([row_id]) for row_id in rows.requests.row_ids])
    return rows.take(np.sort(np.argsort(order, kind="stable")[:most]))


def rank_by_stage(rows: EvaluationRows, bundle: ModelBundle, stage: str) -> Ranks:
    """Ranks the targets of the rows by a generating stage among all POIs live at each request."""
    model, targets = bundle.model(stage), rows.requests.targets
    parts = [
        (
            positions,
            rank_targets_by_model(model, batch, targets[positions], rows.catalogue, finder=rows.finder),
        )
        for positions, batch in rows.batches(MAX_GATE_ROWS)
    ]
    order = (
        np.argsort(np.concatenate([positions for positions, _ in parts])) if parts else np.zeros(0, np.int64)
    )
    return Ranks.join(ranks for _, ranks in parts).take(order)
