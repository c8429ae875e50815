"""The follower processes of a data-parallel training: they read the pinned tables of the first and write nothing."""

import logging
from collections.abc import Mapping, Sequence

from conf.errors import MissingInputError, NoTrainingDataError
from models.data.parallel import broadcast_message
from models.training.pipeline import Training, run_stage
from models.training.stage import TrainResult

LOGGER = logging.getLogger(__name__)


def follow(training: Training, stages: Sequence[str]) -> dict[str, TrainResult]:
    """Takes part in some stages, in the order in which the first process trains them.

    A stage that the first process refuses, or that has no data, is skipped here too: all processes read the same rows
    and get the same result. Any other error ends the process, and torchrun then ends the rest.
    """
    results = {}
    for stage in stages:
        message = broadcast_message(None)
        if "refused" in message:
            LOGGER.warning("stage %s is left out: %s", stage, message["refused"])
            continue
        training.take(message)
        try:
            results[stage] = run_stage(training, stage, _log_nothing)
        except (NoTrainingDataError, MissingInputError) as error:
            LOGGER.warning("stage %s is left out: %s", stage, error)
    return results


def _log_nothing(metrics: Mapping[str, float], step: int) -> None:
    """Does nothing, since only the first process logs."""
