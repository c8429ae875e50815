"""Which tables each stage of a training reads."""

from models.config import Recipe
from models.copying.crowd_tables import CROWD_TABLES
from models.serving.bundle import GENERATING_STAGES

STAGE_TABLES = {
    "pretrain": ("pretrain_samples", "poi_index", "blocks"),
    "sft_embedding": ("ranking_samples",),
    "sft_ranking": ("ranking_samples",),
    "align_dpo": ("preference_pairs",),
}
"""Stages in order, and the tables that each reads whatever the recipe."""
VECTOR_TABLES = ("poi_vectors", "poi_index")
"""What both SFTs read too, if the recipe fuses POI vectors."""


def tables_of(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Returns the tables that a stage reads, the one of its samples first.

    Those of what the crowd did are read by stages that learn P(POI), if the decoder copies from the crowd.
    """
    copies = recipe.decoder.crowd.enabled and stage in GENERATING_STAGES
    vectors = VECTOR_TABLES if fuses_vectors(stage, recipe) else ()
    return STAGE_TABLES[stage] + vectors + (CROWD_TABLES if copies else ())


def fuses_vectors(stage: str, recipe: Recipe) -> bool:
    """Tells whether a stage reads POI vectors."""
    return recipe.fuse_poi_vectors and stage.startswith("sft_")
