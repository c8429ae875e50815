"""Draws the faults that the gates are tried on: kinds and severities by seed, written down before any threshold.

    python -m tests.bench.gates.mutant_list > tests/bench/gates/mutants.json

Two lists of equal make: thresholds may be chosen by looking at `tune`; only `count` counts.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

LIST = Path(__file__).with_name("mutants.json")
SEEDS = {"tune": 1181, "count": 90210}
PER_LEVEL = {"model": 12, "night": 18, "input": 6}
Level = Literal["model", "night", "input"]
Severity = Mapping[str, object]


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        level: `model` = a bundle before it is registered; `night` = the feature tables before the audit; `input` =
            what is delivered for a night.
        kind: what is done (`model_mutants`, `night_mutants`, `input_mutants`).
        severity: how much of it.
        seed: of everything random in it.
    """

    level: Level
    kind: str
    severity: Severity
    seed: int

    @property
    def name(self) -> str:
        """Returns level, kind and severity as one word."""
        told = ",".join(f"{key}={value}" for key, value in self.severity.items())
        return f"{self.level}:{self.kind}({told})"


def _tower(rng: random.Random) -> str:
    return rng.choice(["user", "poi"])


def _stage(rng: random.Random) -> str:
    return rng.choice(["pretrain", "sft_embedding", "sft_ranking"])


def _share(rng: random.Random) -> float:
    return rng.choice([0.2, 0.4, 0.7, 1.0])


def _table(rng: random.Random) -> str:
    return rng.choice(["user_embeddings", "poi_embeddings"])


KINDS: Mapping[Level, Mapping[str, Callable[[random.Random], Severity]]] = {
    "model": {
        "collapsed_towers": lambda rng: {"tower": rng.choice(["user", "poi", "both"]), "rank": rng.choice([1, 2])},
        "constant_towers": lambda rng: {"tower": _tower(rng)},
        "negated_tower": lambda rng: {"tower": _tower(rng)},
        "permuted_tower": lambda rng: {"tower": _tower(rng)},
        "swapped_towers": lambda rng: {},
        "negated_clicks": lambda rng: {},
        "permuted_clicks": lambda rng: {},
        "scaled_clicks": lambda rng: {"factor": rng.choice([4, 10, 30])},
        "shifted_clicks": lambda rng: {"shift": rng.choice([-4, -2, 2, 4])},
        "half_zero": lambda rng: {"stage": _stage(rng), "share": rng.choice([0.5, 0.8])},
        "noisy": lambda rng: {"stage": _stage(rng), "sigma": rng.choice([1, 2])},
        "untrained": lambda rng: {"stage": _stage(rng)},
        "shuffled_blocks": lambda rng: {"stage": _stage(rng)},
        "shuffled_pois": lambda rng: {"stage": _stage(rng)},
        "not_a_number": lambda rng: {"stage": _stage(rng)},
        "one_stage_twice": lambda rng: {"target": rng.choice(["sft_embedding", "sft_ranking"])},
    },
    "night": {
        "shuffled_vectors": lambda rng: {"table": _table(rng), "share": _share(rng)},
        "constant_vectors": lambda rng: {"table": _table(rng), "share": _share(rng)},
        "negated_vectors": lambda rng: {"table": _table(rng), "share": _share(rng)},
        "half_zero_vectors": lambda rng: {"table": _table(rng), "share": _share(rng)},
        "noisy_vectors": lambda rng: {"table": _table(rng), "sigma": rng.choice([0.1, 0.3])},
        "swapped_vectors": lambda rng: {"share": _share(rng)},
        "stale_vectors": lambda rng: {"share": _share(rng)},
        "missing_vectors": lambda rng: {"table": _table(rng), "share": rng.choice([0.05, 0.2, 0.5])},
        "negated_scores": lambda rng: {"share": _share(rng)},
        "shuffled_scores": lambda rng: {"within": rng.choice(["request", "table"])},
        "constant_scores": lambda rng: {"share": _share(rng)},
        "scaled_scores": lambda rng: {"factor": rng.choice([0.01, 5, 100])},
        "scores_not_of_logits": lambda rng: {"share": _share(rng)},
        "leaked_labels": lambda rng: {"gain": rng.choice([0.5, 2, 5])},
        "missing_scores": lambda rng: {"share": rng.choice([0.05, 0.2])},
        "reversed_candidates": lambda rng: {"share": _share(rng)},
        "constant_candidates": lambda rng: {"share": _share(rng)},
        "random_candidates": lambda rng: {"share": _share(rng)},
        "swapped_candidates": lambda rng: {"share": _share(rng)},
        "cut_candidates": lambda rng: {"kept": rng.choice([1, 5])},
        "candidates_in_other_units": lambda rng: {"factor": rng.choice([0.4343, 1.4427])},
        "missing_city": lambda rng: {"table": rng.choice(["user_embeddings", "ranking_scores", "poi_candidates"])},
    },
    "input": {
        "duplicated_day": lambda rng: {},
        "missing_city": lambda rng: {},
        "hours_shifted": lambda rng: {"hours": rng.choice([-9, 6, 9])},
        "one_category": lambda rng: {"share": rng.choice([0.6, 1.0])},
        "half_the_rows": lambda rng: {"share": rng.choice([0.6, 0.8])},
        "one_user": lambda rng: {"share": rng.choice([0.6, 0.9])},
        "all_functional": lambda rng: {"share": rng.choice([0.6, 1.0])},
    },
}  # fmt: skip


def draw(seed: int) -> list[Mutant]:
    """Draws one list: of every level so many, each kind once before any comes twice."""
    rng = random.Random(seed)
    drawn = []
    for level, number in PER_LEVEL.items():
        kinds = list(KINDS[level])
        order: list[str] = []
        while len(order) < number:
            order += rng.sample(kinds, len(kinds))
        drawn += [
            Mutant(level, kind, KINDS[level][kind](rng), rng.randrange(10**6)) for kind in order[:number]
        ]
    return drawn


def read_mutants(group: str) -> list[Mutant]:
    """Reads one list as it was written down: `tune` or `count`."""
    return [Mutant(**each) for each in json.loads(LIST.read_text(encoding="utf-8"))[group]]


if __name__ == "__main__":
    print(
        json.dumps({group: [asdict(each) for each in draw(seed)] for group, seed in SEEDS.items()}, indent=1)
    )
