"""Kills trainings of every stage at random steps, resumes them, and compares the final weights bit for bit.

    python -m tests.bench.resume

Each training runs in a process of its own on the planted city; it tells its step through a pipe, and is sent
SIGKILL, by its id, a random part of a step later: between steps, within one, or while it writes a checkpoint. It is
then started again in a new process. `resume-bit-equal` is how many of the kills end in the weights of a training
that nobody disturbed.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from conf.results import record
from models.network.checkpoint import MODEL_FILE
from models.training import trainer
from tests.bench.planted_training import NUM_STEPS, STAGES, train_stage, write_city

KILLS_PER_STAGE = 10
BAR = ">= 40"
COMMAND = "make bench-resume"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Kill:
    """One killed and resumed training.

    Attributes:
        step: optimiser steps that were done, or about to be, when the kill was sent.
        is_resumed: did the second start go on from a checkpoint (else it began again).
        is_equal: has the model file the same bytes, and every validation the same figures, as undisturbed.
    """

    step: int
    is_resumed: bool
    is_equal: bool


def start_training(stage: str, root: Path, pretrained: Path, folder: Path) -> tuple[int, int]:
    """Starts a training in a new process; returns its id and a pipe with one byte per step begun.

    The process is a fork of this one, which has loaded the libraries and computed nothing.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code = 1
    try:
        os.close(reader)
        _tell_steps(writer)
        result = train_stage(stage, root, pretrained, folder)
        (folder / RESULT_FILE).write_text(json.dumps(asdict(result)))
        code = 0
    except BaseException as error:  # a child must never run its parent's code after this
        sys.stderr.write(f"{stage} failed: {error!r}\n")
    finally:
        os._exit(code)


def train_to_end(stage: str, root: Path, pretrained: Path, folder: Path) -> float:
    """Trains without disturbance and returns the seconds of a step, start-up left out.

    Raises:
        RuntimeError: the training failed.
    """
    child, pipe = start_training(stage, root, pretrained, folder)
    first = None
    with os.fdopen(pipe, "rb", buffering=0) as steps:
        while steps.read(1):
            first = first or time.perf_counter()
    seconds = time.perf_counter() - first if first else 0.0
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise RuntimeError(f"stage {stage} could not be trained")
    return seconds / NUM_STEPS


def kill_at(stage: str, root: Path, pretrained: Path, folder: Path, step: int, delay_s: float) -> bool:
    """Starts a training, kills it a while after it begins a step (from 0), and tells whether that killed it."""
    child, pipe = start_training(stage, root, pretrained, folder)
    with os.fdopen(pipe, "rb", buffering=0) as steps:
        for _ in range(step + 1):
            steps.read(1)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the id is still its own
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def measure_stage(stage: str, root: Path, work: Path, steps: list[int], rng: random.Random) -> list[Kill]:
    """Trains a stage once undisturbed, then once per kill."""
    pretrained, whole = work / "pretrain", work / stage
    step_s = train_to_end(stage, root, pretrained, whole)
    kills = []
    for number, step in enumerate(steps):
        folder = work / f"{stage}-{number}"
        if not kill_at(stage, root, pretrained, folder, step, rng.random() * step_s):
            raise RuntimeError(f"stage {stage} ended before it could be killed at step {step}")
        train_to_end(stage, root, pretrained, folder)
        kills.append(compare(whole, folder, step))
        sys.stderr.write(f"{stage} killed at step {step}: {kills[-1]}\n")
    return kills


def compare(whole: Path, folder: Path, step: int) -> Kill:
    """Compares a resumed training with the undisturbed one."""
    files = [(path / "model" / MODEL_FILE).read_bytes() for path in (whole, folder)]
    expected, found = (json.loads((path / RESULT_FILE).read_text()) for path in (whole, folder))
    is_equal = files[0] == files[1] and expected["validations"] == found["validations"]
    return Kill(step, found["is_resumed"], is_equal)


def record_kills(kills: dict[str, list[Kill]], folder: str) -> int:
    """Records the result; returns how many kills were survived bit-equal."""
    every = [kill for own in kills.values() for kill in own]
    survived = sum(kill.is_equal for kill in every)
    each = ", ".join(
        f"{stage} {sum(kill.is_equal for kill in own)} of {len(own)} (steps "
        f"{' '.join(str(kill.step) for kill in own)})"
        for stage, own in kills.items()
    )
    notes = (
        f"kills with SIGKILL after which the resumed training ends in the same model file and validation figures as an "
        f"undisturbed one: {each}; {sum(kill.is_resumed for kill in every)} went on from a checkpoint, the others "
        f"were killed before the first; trainings of {NUM_STEPS} steps on the planted city, dropout on, one thread"
    )
    record("resume-bit-equal", survived, "kills", BAR, COMMAND, notes, folder)
    return survived


def main() -> int:
    """Measures all stages, records, and returns 0 if every kill was survived."""
    parser = argparse.ArgumentParser(
        description="Records whether killed trainings resume bit-equal in results/."
    )
    parser.add_argument("--kills", type=int, default=KILLS_PER_STAGE, help="per stage")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which trainings are killed")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    # The first optimiser loads seconds of libraries: here once, instead of in every fork.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
        root, work = Path(scratch) / "tables", Path(scratch) / "work"
        write_city_apart(root)
        kills = {
            # The last step is left out: a training may end before a late kill arrives.
            stage: measure_stage(
                stage, root, work, sorted(rng.sample(range(NUM_STEPS - 1), options.kills)), rng
            )
            for stage in STAGES
        }
    survived = record_kills(kills, options.results)
    return 0 if survived == options.kills * len(STAGES) else 1


def write_city_apart(root: Path) -> None:
    """Writes the tables in a process of its own: the Delta writer starts threads, which a fork would lose."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write_city(root)
            code = 0
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise RuntimeError("the tables of the city could not be written")


def _tell_steps(writer: int) -> None:
    """Lets this process write a byte whenever a training begins a step."""
    original = trainer._Training._step

    def step(self: trainer._Training, rows: object) -> None:
        os.write(writer, b".")
        original(self, rows)  # type: ignore[arg-type]

    trainer._Training._step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
