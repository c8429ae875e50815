"""What every process but the first does in a training of several: reads what the first pinned, writes nothing."""

import logging
from collections.abc import Mapping, Sequence

from conf.errors import MissingInputError, NoTrainingDataError
from models.data.parallel import tell_all
from models.training.pipeline import Training, run_stage
from models.training.stage import TrainResult

LOGGER = logging.getLogger(__name__)


def follow(training: Training, stages: Sequence[str]) -> dict[str, TrainResult]:
    """Takes part in some stages, in the order in which the first process trains them.

    A stage that the first process refuses, or that has no data, is left out here too: what is read is the same, so all
    processes meet the same. Whatever else goes wrong ends the process, and torchrun then ends the others.
    """
    results = {}
    for stage in stages:
        told = tell_all(None)
        if "refused" in told:
            LOGGER.warning("stage %s is left out: %s", stage, told["refused"])
            continue
        training.take(told)
        try:
            results[stage] = run_stage(training, stage, _log_nothing)
        except (NoTrainingDataError, MissingInputError) as error:
            LOGGER.warning("stage %s is left out: %s", stage, error)
    return results


def _log_nothing(metrics: Mapping[str, float], step: int) -> None:
    """The first process logs."""
