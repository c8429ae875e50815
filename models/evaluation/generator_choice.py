"""Which stage of a bundle generates POIs: the aligned one if it ranks held-out actions no worse than the pre-trained.

Alignment lifts what users click among what they were shown; too long a step takes that from everything else. So the two
are compared on the validation rows before the bundle is registered, and `bundle.json` says which one serves.
"""

import logging
from dataclasses import dataclass

import numpy as np

from models.data.ranks import Ranks
from models.evaluation.metrics import FloatArray, digest_rows, exact_mean, reciprocal_values
from models.evaluation.release_split import EvaluationRows
from models.serving.bundle import GENERATING_STAGES, ModelBundle, describe_bundle
from models.serving.inference import rank_targets_by_model

LOGGER = logging.getLogger(__name__)
MAX_GATE_ROWS = 2_000


@dataclass(frozen=True)
class GeneratorChoice:
    """What the generating stages of a bundle are worth on held-out rows.

    Attributes:
        stage: the better one; it generates.
        mrr: by stage; empty without validation rows.
        reciprocal_ranks: of the better one, by row of `sample_rows(rows, MAX_GATE_ROWS)`.
    """

    stage: str
    mrr: dict[str, float]
    reciprocal_ranks: FloatArray


def choose_generator(rows: EvaluationRows | None, bundle: ModelBundle) -> GeneratorChoice:
    """Compares the generating stages by MRR on at most `MAX_GATE_ROWS` rows and notes the better in `bundle.json`.

    Args:
        rows: held-out validation rows, never test rows; without any the pre-trained stage generates, since nothing
            says that alignment did no harm.
        bundle: just built.
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
    describe_bundle(bundle, {"generator_stage": chosen, "generator_mrr": mrr})
    return GeneratorChoice(chosen, mrr, reciprocal[chosen])


def sample_rows(rows: EvaluationRows, most: int) -> EvaluationRows:
    """Returns at most so many rows, the same ones for equal row ids whatever their order."""
    if len(rows.requests) <= most:
        return rows
    # By digest: row ids begin with the user, so the first by name would be those of a few users.
    order = np.array([digest_rows([row_id]) for row_id in rows.requests.row_ids])
    return rows.take(np.sort(np.argsort(order, kind="stable")[:most]))


def rank_by_stage(rows: EvaluationRows, bundle: ModelBundle, stage: str) -> Ranks:
    """Ranks the targets of the rows by a generating stage, over all POIs live as of each request."""
    model, targets = bundle.model(stage), rows.requests.targets
    parts = [
        (own, rank_targets_by_model(model, batch, targets[own], rows.catalogue, finder=rows.finder))
        for own, batch in rows.batches(MAX_GATE_ROWS)
    ]
    order = np.argsort(np.concatenate([own for own, _ in parts])) if parts else np.zeros(0, np.int64)
    return Ranks.join(ranks for _, ranks in parts).take(order)
