"""The rows of the paper's Tables 6 and 7 that we train: one recipe, one thing changed per row.

`full` is the paper's model as docs/design.md 4 has it, with a vector per POI, without what goes beyond the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config import Recipe, load_recipe
from tests.bench.paper.sequence_baselines import Kind


@dataclass(frozen=True)
class Variant:
    """A row of a table.

    Attributes:
        title: how pages name it.
        table7: hr@1 and hr@100 that the paper's Table 7 gives; None = it is not one of its rows.
        overrides: what differs in the recipe, `a.b=value`.
        is_hashed: blocks are hash buckets instead of places.
        baseline: a sequence model instead of the decoder.
    """

    title: str
    table7: tuple[float, float] | None = None
    overrides: tuple[str, ...] = ()
    is_hashed: bool = False
    baseline: Kind | None = None


FULL = "full"
VARIANTS: Mapping[str, Variant] = {
    FULL: Variant("Spacetime-GR (the paper's model)", (0.1525, 0.4721)),
    "gpt": Variant("GPT-style: flat vocabulary, no spacetime", (0.0688, 0.2195), baseline="gpt"),
    "no-spacetime": Variant("without spacetime", (0.1007, 0.3671), ("decoder.spacetime=false",)),
    "hash-index": Variant("hash index instead of hierarchical", (0.1328, 0.3480), is_hashed=True),
    "no-curriculum": Variant("without curriculum", (0.1463, 0.4624), ("pretrain.curriculum=false",)),
    "lstm": Variant("LSTM", baseline="lstm"),
    "sasrec": Variant("SASRec-like", baseline="sasrec"),
    "places-together": Variant("places that start together", None, ("decoder.place_std=0",)),
    "ids-only": Variant("outputs of ids alone", None, ("decoder.tie_side_information=false",)),
    "memory": Variant("with history copy (ours)", None, ("decoder.memory.enabled=true",)),
    "memory-others": Variant(
        "with history copy and the crowd copy (ours)",
        None,
        ("decoder.memory.enabled=true", "decoder.crowd.enabled=true"),
    ),
}
"""In the order in which cells are trained."""
TABLE7_ROWS = tuple(name for name, variant in VARIANTS.items() if variant.table7 and name != FULL)


def load_variant(path: str | Path, variant: Variant, *, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of one cell; raises as `models.config.load_recipe`."""
    return load_recipe(path, [*overrides, *variant.overrides, f"pretrain.seed={seed}"])
