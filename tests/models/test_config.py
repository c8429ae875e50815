"""Recipes: capacities from the layout, refusals, the recipes that ship."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from conf.errors import SettingsError
from conf.tokens import TokenLayout
from models.config import DecoderConfig, Recipe, load_recipe, size_layout

RECIPES = Path(__file__).parents[2] / "conf" / "models"


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_shipped_recipes_load(name):
    assert load_recipe(RECIPES / f"{name}.yaml").name == name


def test_overrides_win_over_the_file():
    recipe = load_recipe(RECIPES / "tiny.yaml", ["decoder.memory.enabled=false", "pretrain.epochs=1"])

    assert not recipe.decoder.memory.enabled
    assert recipe.pretrain.epochs == 1


def test_recipes_and_options_may_use_the_names_that_parts_had_before(tmp_path):
    old = tmp_path / "old.yaml"
    old.write_text("decoder: {others: {enabled: true, num_near: 4}, taste: {enabled: true}}")

    recipe = load_recipe(old, ["decoder.crowd.num_near=6"])
    mixed = load_recipe(old, ["decoder.crowd.num_near=5", "decoder.interest_match.enabled=false"])

    assert recipe.decoder.crowd.enabled
    assert recipe.decoder.interest_match.enabled
    assert mixed.decoder.crowd.num_near == 5
    assert not mixed.decoder.interest_match.enabled
    shipped = load_recipe(RECIPES / "checkins.yaml", ["decoder.crowd.num_near=7"])
    assert shipped.decoder.crowd.num_near == 7
    assert shipped.decoder.crowd.enabled


def test_a_removed_key_is_taken_with_its_only_value(tmp_path):
    old = tmp_path / "old.yaml"
    old.write_text("sft_embedding: {ema_decay: 0.0, sampling_correction: false, temperature: 0.2}")

    assert load_recipe(old).sft_embedding.temperature == 0.2
    with pytest.raises(SettingsError, match="sampling_correction"):
        load_recipe(old, ["sft_embedding.sampling_correction=true"])


def test_every_removed_key_is_taken_with_the_value_that_is_a_constant_now(tmp_path):
    old = tmp_path / "old.yaml"
    old.write_text(
        "decoder: {geo_scales_km: [100.0, 25.0, 5.0, 1.0, 0.25], memory: {table_rate: 10.0, large_table_rate: 2.0},"
        " interest_match: {match_rate: 1.0, head_rate: 10.0}}\npretrain: {beta1: 0.9, beta2: 0.98}"
    )

    assert load_recipe(old) == Recipe()
    with pytest.raises(SettingsError, match="geo_scales_km"):
        load_recipe(old, ["decoder.geo_scales_km=[1.0]"])


def test_a_misspelt_key_names_the_known_ones():
    with pytest.raises(SettingsError, match=r"decoder\.hiden_dim.*hidden_dim"):
        load_recipe(RECIPES / "tiny.yaml", ["decoder.hiden_dim=32"])


def test_a_layout_leaves_room_to_grow_and_makes_the_fingerprint():
    layout = size_layout(index_version=2, num_blocks=8, max_inner=100, num_categories=3, headroom=1.5)
    config = DecoderConfig().with_layout(layout, num_pois=300)

    assert layout == TokenLayout(2, 13, 151, 6)
    assert config.layout == layout
    assert config.layout.fingerprint() == layout.fingerprint()
    assert config.poi_rows >= 300


def test_switched_off_poi_vectors_have_no_rows():
    layout = TokenLayout(1, 5, 7, 4)

    assert DecoderConfig(poi_vectors="off").with_layout(layout, num_pois=30).poi_rows == 0


@pytest.mark.parametrize("changes", [{"num_heads": 3}, {"num_kv_heads": 3}, {"hidden_dim": 20}])
def test_heads_that_do_not_divide_are_refused(changes):
    with pytest.raises(ValidationError):
        DecoderConfig(**changes)


@pytest.mark.parametrize("changes", [{"tie_embeddings": False}, {"interest_match": {"enabled": True}}])
def test_side_information_in_outputs_goes_only_with_what_it_is_tied_to(changes):
    with pytest.raises(ValidationError, match="tie_side_information"):
        DecoderConfig(tie_side_information=True, **changes)
