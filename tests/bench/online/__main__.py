"""Measures Table 5 and the A/B test of the paper on simulated cities.

    python -m tests.bench.online [--seeds 301,302,303] [--work FOLDER] [--parts table5,ab]

`conf/bench/online.yaml` was committed before the first run of these seeds; seed 5 is for development, and its figures
are printed but not recorded. What is done is not done again, so a run can be stopped at any time.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from tests.bench.online.experiment import CONFIG, Experiment, clear_environment, open_experiment, prepare
from tests.bench.online.figures import record_ab, record_table5
from tests.bench.online.lists import RankingTeam, train_team
from tests.bench.online.loop import compare_lists, live_day, lived_days, note_lived, read_outcomes

PARTS = ("table5", "ab")
LOGGER = logging.getLogger(__name__)


def measure_table5(experiment: Experiment, team: Callable[[], RankingTeam]) -> dict[str, Any]:
    """Compares the lists, unless that is done."""
    path = experiment.folder / "table5.json"
    if not path.exists():
        path.write_text(json.dumps(compare_lists(experiment, team())))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def measure_ab(experiment: Experiment, team: Callable[[], RankingTeam]) -> pa.Table:
    """Lives the days that are not over yet; returns all impressions. The last night publishes a release."""
    days = experiment.content["ab_days"]
    for number in range(lived_days(experiment) + 1, days + 1):
        LOGGER.info("seed %d: day %d of %d", experiment.seed, number, days)
        live_day(experiment, team(), number)
        if number == days:
            released = experiment.run("udfs", "release", "--day", str(experiment.ab_day(number)))
            (experiment.folder / "release.json").write_text(json.dumps(released, default=str))
        note_lived(experiment, number)
    return pa.concat_tables([read_outcomes(experiment, number) for number in range(1, days + 1)])


def main() -> int:
    """Measures and records."""
    parser = argparse.ArgumentParser(description="Table 5 and the A/B test, simulated.")
    parser.add_argument("--seeds", default="", metavar="LIST", help=f"without it those of {CONFIG}")
    parser.add_argument("--work", type=Path, default=Path(".demo/online"), metavar="FOLDER")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="LIST")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="for development")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of torch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    clear_environment()
    torch.set_num_threads(options.threads)
    recorded = open_experiment(0, options.work).content["seeds"]
    seeds = [int(seed) for seed in options.seeds.split(",")] if options.seeds else recorded
    compared: dict[int, dict[str, Any]] = {}
    tables: dict[int, pa.Table] = {}
    for seed in seeds:
        experiment = open_experiment(seed, options.work, options.config)
        prepare(experiment, options.threads)
        # The ranking team's models are trained when the first list is made: nothing may be left to do.
        team = cache(partial(train_team, experiment, experiment.bundle))
        if "table5" in options.parts:
            compared[seed] = measure_table5(experiment, team)
        if "ab" in options.parts:
            tables[seed] = measure_ab(experiment, team)
    about = f"cities of seeds {', '.join(map(str, seeds))}, configuration {experiment.config_hash}"
    with tempfile.TemporaryDirectory() as aside:
        folder = "results" if seeds == recorded and options.config == CONFIG else aside
        if compared:
            record_table5(compared, about, folder)
        if tables:
            conversions = f"visits after clicks {experiment.content['conversions']}"
            record_ab(tables, conversions, about, folder)
        for file in sorted(Path(folder).glob("*-*.json")):
            if file.stem.startswith(("table5-", "ab-", "aa-")):
                found = json.loads(file.read_text())
                sys.stderr.write(f"{found['name']}: {found['value']} {found['unit']}; {found['notes']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
