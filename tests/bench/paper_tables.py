"""Re-measures the paper's Tables 6 and 7, cell by cell, and writes the page and `table7-rows-reproduced`.

    python -m tests.bench.paper_tables --data FOLDER --city FOLDER

FOLDER of --data holds check-ins (`checkins.parquet`, `pois.parquet`), that of --city those of the synthetic city
(tests.bench.paper_city makes it). Cells that are in --work are not made again; --minutes stops before a cell is begun,
so that the tables can be made in as many sittings as one likes: the first seed of every row first.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from conf.results import record
from tests.bench.paper.page import Cells, compare_table7, describe_set
from tests.bench.paper.runs import CHECKIN_SETS, CellMaker
from tests.bench.paper.variants import FULL, TABLE7_ROWS, VARIANTS, load_variant

LOGGER = logging.getLogger(__name__)
RECIPE = "conf/models/paper.yaml"
COMMAND = "make paper-tables DATA=FOLDER"
BAR = ">= 4"
PAGE = Path("docs/paper-tables.md")


def make_cells(makers: list[CellMaker], options: argparse.Namespace) -> None:
    """Makes the cells that are missing, seeds outermost, until the time is up."""
    ends = time.monotonic() + 60 * options.minutes
    for seed in options.seeds:
        for variant in options.variants:
            for maker in makers:
                recipe = load_variant(options.recipe, VARIANTS[variant], seed=seed)
                if maker.find(variant, seed, recipe) is None:
                    if time.monotonic() >= ends:
                        return
                    maker.make(variant, seed, recipe)


def find_cells(maker: CellMaker, options: argparse.Namespace) -> Cells:
    """Reads the cells that have been made."""
    found: dict[str, list] = {}
    for variant, chosen in VARIANTS.items():
        recipes = [(seed, load_variant(options.recipe, chosen, seed=seed)) for seed in options.seeds]
        cells = [maker.find(variant, seed, recipe) for seed, recipe in recipes]
        found[variant] = [cell for cell in cells if cell is not None]
    return found


def write_page(makers: list[CellMaker], cells: list[Cells], page: Path) -> None:
    """Writes the page."""
    lines = [
        "# Tables 6 and 7 of the paper, measured again",
        "",
        f"Made by `{COMMAND}`; not written by hand. Every row is the recipe `{RECIPE}` with one thing changed "
        "(`tests/bench/paper/variants.py`): the same training rows, batches, optimiser steps at most and selection on "
        f"validation, {torch.get_num_threads()} CPU threads of torch. Rankings are full, over all POIs with a training "
        "check-in. `min` is the mean time of a training.",
        "",
    ]
    for maker, own in zip(makers, cells, strict=True):
        lines += describe_set(maker, own)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines))


def record_table7(makers: list[CellMaker], cells: list[Cells], folder: str) -> None:
    """Records how many rows of Table 7 are reproduced on every set of check-ins measured."""
    compared = {
        maker.checkins.name: compare_table7(maker.rows.requests["test"], own)
        for maker, own in zip(makers, cells, strict=True)
    }
    if not all(len(rows) == len(TABLE7_ROWS) for rows in compared.values()):
        LOGGER.warning("Table 7 is not complete: nothing is recorded")
        return
    reproduced = {name: {row.variant for row in rows if row.is_reproduced} for name, rows in compared.items()}
    everywhere = set(TABLE7_ROWS).intersection(*reproduced.values())
    told = "; ".join(
        f"{name}: " + ", ".join(f"{row.variant} {row.verdict}" for row in rows)
        for name, rows in compared.items()
    )
    seeds = {
        maker.checkins.name: min(len(own[name]) for name in (FULL, *TABLE7_ROWS))
        for maker, own in zip(makers, cells, strict=True)
    }
    least = ", ".join(f"{name} {count}" for name, count in seeds.items())
    notes = (
        f"rows of Table 7 whose difference to the full model excludes 0 at hr@1 and at hr@100 on every set; {told}; "
        f"seeds of each row at least: {least}; page {PAGE}"
    )
    record("table7-rows-reproduced", len(everywhere), "rows", BAR, COMMAND, notes, folder)


def main() -> int:
    """Makes cells, page and record; returns 2 if no folder is there."""
    parser = argparse.ArgumentParser(description="Re-measures the paper's Tables 6 and 7.")
    parser.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="check-ins of New York")
    parser.add_argument(
        "--city", type=Path, default=None, metavar="FOLDER", help="check-ins of the synthetic city"
    )
    parser.add_argument("--work", type=Path, default=Path(".demo/paper-tables"), metavar="FOLDER")
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(VARIANTS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no cell is begun after that")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    folders = {"nyc": options.data, "city": options.city}
    makers = [
        CellMaker(CHECKIN_SETS[name], folder, options.work / name)
        for name, folder in folders.items()
        if folder is not None and folder.is_dir()
    ]
    if not makers:
        LOGGER.error("neither --data nor --city names a folder")
        return 2
    make_cells(makers, options)
    cells = [find_cells(maker, options) for maker in makers]
    write_page(makers, cells, options.page)
    record_table7(makers, cells, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
