"""Measures Tables 4 and 8 on check-ins with simulated exposures; writes a page and records the lift.

    python -m tests.bench.posttraining_checkins --data FOLDER --work FOLDER

Nobody saw what the people of the check-ins were shown: the exposures follow the recall rule of
`etl/tables/impressions.py`, and the POI that was visited counts as clicked. So the figures say what features add where
labels are visits, and there is no oracle. What is done is not done again.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

from conf.results import record
from tests.bench.posttraining_city import open_city
from tests.bench.posttraining_page import write_page
from tests.bench.posttraining_tables import RECIPE, measure_city

CONFIG = Path("conf/bench/posttraining_checkins.yaml")
COMMAND = "make bench-posttraining DATA=FOLDER"
PAGE = Path("docs/posttraining-checkins.md")
PARTS = ("table8", "table4")
CITY = "New York"


def main() -> int:
    """Measures, records and writes the page; returns 2 if there are no check-ins."""
    parser = argparse.ArgumentParser(description="Tables 4 and 8 on check-ins with simulated exposures.")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="check-ins of New York")
    parser.add_argument("--work", type=Path, default=Path(".demo/posttraining"), metavar="FOLDER")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("models").setLevel(logging.WARNING)
    if not (options.data / "checkins.parquet").is_file():
        print(
            f"error: {options.data} holds no checkins.parquet; name the folder with --data", file=sys.stderr
        )
        return 2
    torch.set_num_threads(options.threads)
    city = open_city(0, options.work, CONFIG, data=options.data)
    figures = measure_city(city, RECIPE, PARTS)
    exposures = (
        f"check-ins of {CITY} with simulated exposures, configuration `{CONFIG}` (hash {city.config_hash}), recipe "
        f"`{RECIPE}`"
    )
    write_page(
        {CITY: figures},
        options.page,
        title="Tables 4 and 8 of the paper on check-ins with simulated exposures",
        about=f"Made by `{COMMAND}`; not written by hand. Measured on {exposures}.",
    )
    table4 = figures["table4"]
    assert isinstance(table4, dict)
    auc = table4["auc"]
    low, high = (100 * value for value in table4["lift_interval"])
    told = "; ".join(f"{name} {value:.4f}" for name, value in auc.items())
    record(
        "checkins-lift-points",
        round(100 * (auc["both"] - auc["base"]), 4),
        "points",
        "",
        COMMAND,
        f"AUC on {table4['requests']} test requests: {told}; interval of the lift {low:.2f} to {high:.2f}; {exposures}",
        options.results,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
