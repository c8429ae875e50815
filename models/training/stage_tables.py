"""The tables that each stage of a training reads."""

from models.config import Recipe
from models.copying.crowd_tables import CROWD_TABLES
from models.serving.bundle import GENERATING_STAGES

STAGE_TABLES = {
    "pretrain": ("pretrain_samples", "poi_index", "blocks"),
    "sft_embedding": ("ranking_samples",),
    "sft_ranking": ("ranking_samples",),
    "align_dpo": ("preference_pairs",),
}
"""Stages in order, and the tables that each reads with any recipe."""
VECTOR_TABLES = ("poi_vectors", "poi_index")
"""Tables that both SFT stages also read if the recipe fuses POI vectors."""


def tables_of(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Returns the tables that a stage reads, its samples first.

    Stages that learn P(POI) also read the tables of the crowd if the decoder copies from it.
    """
    copies = recipe.decoder.crowd.enabled and stage in GENERATING_STAGES
    vectors = VECTOR_TABLES if fuses_vectors(stage, recipe) else ()
    return STAGE_TABLES[stage] + vectors + (CROWD_TABLES if copies else ())


def fuses_vectors(stage: str, recipe: Recipe) -> bool:
    """Returns whether a stage reads POI vectors."""
    return recipe.fuse_poi_vectors and stage.startswith("sft_")
