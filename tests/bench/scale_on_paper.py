"""Turns measured rates into machines and hours for the paper's scale, and says what breaks first: writes docs/scale.md.

    python -m tests.bench.scale_on_paper        # after make bench-rates and make bench-train; reads results/*.json

Every number of the page is computed here, from a file of results/ or from an assumption that the page names. Work is
taken as linear in rows, which holds for all stages but those listed as what breaks first.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conf.results import load
from conf.settings import IndexSettings
from models.config import load_recipe

USERS, POIS, SEQUENCES, ACTIONS_PER_SEQUENCE = 10**8, 10**8, 578 * 10**6, 146
"""The paper's scale (docs/design.md 4)."""
TOKENS_PER_ACTION = 4
ACTIVE_SHARE, ACTIONS_PER_ACTIVE_USER, CHANGED_POI_SHARE = 0.3, 10, 0.001
"""Assumed of a night."""
CORES_PER_MACHINE, NIGHT_HOURS = 64, 6
GPU_FLOPS, PAPER_GPUS, PAPER_DAYS = 2e14, 96, 7
"""Assumed sustained bfloat16 FLOP/s of one training GPU: about a fifth of the peak of a current one."""
CATALOGUE_BYTES = 9 * 8 + 8 + 60
"""Of one POI in a worker of `poi_candidates`: nine arrays of eight bytes, and its id as a Python text."""
RESULT_LIMIT, ARROW_BYTES = 10**9, 3 * 4 + 2 * 8 + 2 * 4 + 16
"""`spark.driver.maxResultSize` by default, and what a POI takes on its way to the driver: ids, place, days, its id."""
BLOCKS = 400_000
"""Of the paper, for 10^8 POIs."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Stage:
    """Work of one stage: so many units at so many a core second."""

    name: str
    units: float
    rate: float

    @property
    def core_hours(self) -> float:
        return self.units / self.rate / 3600

    @property
    def machines(self) -> float:
        """Machines that finish it within a night."""
        return self.core_hours / (CORES_PER_MACHINE * NIGHT_HOURS)


def stages(values: Mapping[str, float], train_tokens: float) -> list[Stage]:
    """Returns what a night, a first night and a training cost."""
    nightly_actions = USERS * ACTIVE_SHARE * ACTIONS_PER_ACTIVE_USER
    history = SEQUENCES * ACTIONS_PER_SEQUENCE
    return [
        Stage("night: cleansing", nightly_actions, values["rate-clean-actions"]),
        Stage("night: sequences of active users", USERS * ACTIVE_SHARE * ACTIONS_PER_SEQUENCE,
              values["rate-sequence-actions"]),
        Stage("night: vectors of active users", USERS * ACTIVE_SHARE, values["rate-user-vectors"]),
        Stage("night: vectors of new and changed POIs", POIS * CHANGED_POI_SHARE, values["rate-poi-vectors"]),
        Stage("new model: vectors of all users", USERS, values["rate-user-vectors"]),
        Stage("new model: vectors of all POIs", POIS, values["rate-poi-vectors"]),
        Stage("rebuild: cleansing of all history", history, values["rate-clean-actions"]),
        Stage("training: one epoch, tiny recipe, on CPU cores", history * TOKENS_PER_ACTION, train_tokens),
    ]  # fmt: skip


def weights_of(recipe: str) -> int:
    """Returns the weights of a recipe's layers, vocabularies not counted (attention with grouped keys, SwiGLU)."""
    shape = load_recipe(Path("conf/models") / f"{recipe}.yaml").decoder
    keys = shape.hidden_dim * shape.num_kv_heads // shape.num_heads
    attention = 2 * shape.hidden_dim * (shape.hidden_dim + keys)
    return shape.num_layers * (attention + 3 * shape.hidden_dim * shape.ffn_dim)


def breaking_points(values: Mapping[str, float]) -> list[str]:
    """Returns what stops being linear first, with its size at the paper's scale."""
    base = load_recipe(Path("conf/models/base.yaml")).decoder
    giga = 1e9
    history = SEQUENCES * ACTIONS_PER_SEQUENCE
    return [
        f"**The catalogue of `poi_candidates`** is collected on the driver, broadcast, and held by every Python worker: "
        f"{CATALOGUE_BYTES} bytes a POI, {POIS * CATALOGUE_BYTES / giga:.0f} GB a worker. Spark's limit on "
        f"collected results (1 GB by default) ends it at about {RESULT_LIMIT / ARROW_BYTES / 1e6:.0f} million POIs. Remedy: cut it by region (requests are local), one task "
        "per region.",
        f"**A vector per POI** (`poi_vectors: exact`) would take {POIS * base.hidden_dim * FLOAT_BYTES / giga:.0f} GB of "
        f"weights at width {base.hidden_dim}, four times that with gradients and optimiser. Already available: hashed "
        f"rows (`conf/models/base.yaml`: {base.poi_rows:,} rows, {base.poi_rows * base.hidden_dim * FLOAT_BYTES / giga:.1f} "
        "GB).",
        f"**Blocks**: {POIS / BLOCKS:.0f} POIs a block on average over {BLOCKS:,} blocks, below `index.max_inner` "
        f"{IndexSettings().max_inner:,}; but the densest block of a megacity may exceed it. The index job warns at 80 % and stops at the limit, naming the "
        "block. Remedy: raise `index.max_inner`, or a finer cell, before the first training.",
        f"**Storage**: {history * values['bytes-per-action'] / 1e12:.1f} TB for the history as raw, cleaned and sequences at "
        f"{values['bytes-per-action']:.0f} bytes an action; `action_sequences` repeats a user's history on each active "
        "day, so `vacuum` alone does not bound it: drop its old days, which a rebuild makes again.",
        "**The POI index MERGE** rewrites the files that hold changed rows; rows are clustered by `poi_id`, so a night "
        f"that changes {CHANGED_POI_SHARE:.1%} of the POIs at random touches almost every file. Remedy: OPTIMIZE into "
        "files of 128 MB, or deletion vectors once the readers of trainings know them.",
    ]  # fmt: skip


def render(values: Mapping[str, float], train_tokens: float) -> str:
    """Returns the page."""
    lines = [
        "# Scale on paper",
        "",
        "Made by `python -m tests.bench.scale_on_paper` from the rates in `results/`; not measured at this scale.",
        "",
        f"Target: {USERS:,} users, {POIS:,} POIs, {SEQUENCES:,} sequences of {ACTIONS_PER_SEQUENCE} actions. Assumed: "
        f"{ACTIVE_SHARE:.0%} of the users act on a day, {ACTIONS_PER_ACTIVE_USER} times each; {CHANGED_POI_SHARE:.1%} of "
        f"the POIs change; machines of {CORES_PER_MACHINE} cores like the measured one; a night has {NIGHT_HOURS} hours; "
        "work is linear in rows.",
        "",
        "| stage | units | units per core second, measured | core hours | machines for one night |",
        "|---|---:|---:|---:|---:|",
    ]
    for stage in stages(values, train_tokens):
        lines.append(
            f"| {stage.name} | {stage.units:.2e} | {stage.rate:,.0f} | {stage.core_hours:,.0f} | {stage.machines:,.2f} |"
        )
    tokens = SEQUENCES * ACTIONS_PER_SEQUENCE * TOKENS_PER_ACTION
    tiny, base = weights_of("tiny"), weights_of("base")
    gpu_hours = 6 * base * tokens / GPU_FLOPS / 3600
    core_flops = 6 * tiny * train_tokens
    lines += [
        "",
        "## With GPUs",
        "",
        f"Vectors and training above are of the tiny recipe ({tiny:,} weights in the layers) on CPU cores, which reach "
        f"{core_flops / 1e9:.1f} GFLOP/s each in training (6 FLOP per weight and token). The base recipe has {base:,}: "
        f"{base / tiny:,.0f} times the work a token, for GPUs. One epoch over {tokens:.2e} tokens is {gpu_hours:,.0f} GPU "
        f"hours at an assumed {GPU_FLOPS / 1e12:.0f} TFLOP/s sustained (attention and vocabularies not counted), "
        f"{gpu_hours / PAPER_GPUS:.1f} hours on the paper's {PAPER_GPUS} GPUs; the paper took {PAPER_DAYS} days, "
        f"{PAPER_GPUS * PAPER_DAYS * 24:,} GPU hours, for a model size and a number of epochs that it does not state.",
        "",
        "## What breaks first",
        "",
        *(f"{number}. {point}" for number, point in enumerate(breaking_points(values), 1)),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the page and returns 0."""
    parser = argparse.ArgumentParser(description="Writes docs/scale.md from results/.")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("docs/scale.md"))
    options = parser.parse_args()
    results = {result.name: result for result in load(options.results)[0]}
    trained = re.search(r"tokens per CPU second: ours (\d+)", results["train-vs-hf-llama"].notes)
    assert trained, "make bench-train tells the tokens per CPU second"
    values = {name: result.value for name, result in results.items()}
    options.out.write_text(render(values, float(trained.group(1))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
