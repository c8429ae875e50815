"""Stages read the tables that the recipe asks for, and no others."""

import pytest

from models.config import Recipe
from models.training.stage_tables import tables_of


@pytest.mark.parametrize(
    ("switches", "vectors"),
    [
        ({}, ()),
        ({"fuse_poi_vectors": True}, ("poi_vectors", "poi_index")),
        ({"fuse_poi_images": True}, ("poi_image_vectors", "poi_index")),
        (
            {"fuse_poi_vectors": True, "fuse_poi_images": True},
            ("poi_vectors", "poi_image_vectors", "poi_index"),
        ),
    ],
)
def test_both_sft_stages_read_the_vectors_that_the_recipe_fuses(switches, vectors):
    recipe = Recipe(**switches)

    for stage in ("sft_embedding", "sft_ranking"):
        assert tables_of(stage, recipe) == ("ranking_samples", *vectors)
    assert tables_of("pretrain", recipe) == ("pretrain_samples", "poi_index", "blocks")
    assert tables_of("align_dpo", recipe) == ("preference_pairs",)


def test_stages_that_learn_the_next_poi_read_the_crowd_where_the_decoder_copies_from_it():
    recipe = Recipe.model_validate({"decoder": {"crowd": {"enabled": True}}})

    for stage in ("pretrain", "align_dpo"):
        assert tables_of(stage, recipe)[-2:] == ("training_visits", "training_transitions")
    assert tables_of("sft_ranking", recipe) == ("ranking_samples",)
