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


def tables_of(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Returns the tables that a stage reads, its samples first.

    Stages that learn P(POI) also read the tables of the crowd if the decoder copies from it.
    """
    copies = recipe.decoder.crowd.enabled and stage in GENERATING_STAGES
    vectors = vector_tables(stage, recipe)
    slots = ("poi_index",) if vectors else ()
    return STAGE_TABLES[stage] + vectors + slots + (CROWD_TABLES if copies else ())


def vector_tables(stage: str, recipe: Recipe) -> tuple[str, ...]:
    """Returns the tables of POI vectors, of texts and pictures, that a stage fuses: both SFT stages may."""
    if not stage.startswith("sft_"):
        return ()
    wanted = {"poi_vectors": recipe.fuse_poi_vectors, "poi_image_vectors": recipe.fuse_poi_images}
    return tuple(name for name, is_fused in wanted.items() if is_fused)
