"""Pre-training on the planted city: it learns the habits, resumes, and says what is missing."""

import logging
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from conf.errors import MissingInputError, NoTrainingDataError
from models.config import Recipe
from models.data.dataset import TableAt
from models.training.pretrain import PretrainTables, build_decoder, load_pretrained, run_pretrain

DAY = "2026-03-01"
RECIPE = Recipe.model_validate(
    {
        "decoder": {"hidden_dim": 16, "ffn_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
                    "window_actions": 12, "embedding_dim": 8, "geo_buckets": 64, "dropout": 0.0,
                    "embedding_dropout": 0.0},
        "pretrain": {"epochs": 8, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 5, "patience": 20,
                     "device": "cpu", "checkpoint_every": 7},
    }
)  # fmt: skip


def ignore(metrics: object, step: int) -> None:
    pass


def tables(root: Path) -> PretrainTables:
    return PretrainTables(
        *(TableAt(str(root / name), 0) for name in ("pretrain_samples", "poi_index", "blocks"))
    )


def change(recipe: Recipe, **train: object) -> Recipe:
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update=train)})


def test_the_planted_habits_are_learned(city_root, tmp_path):
    """Four of five actions alternate between two favourites: far fewer nats than a guess."""
    result = run_pretrain(tables(city_root), day=DAY, recipe=RECIPE, layout=None, folder=tmp_path, log=ignore)

    assert result.validations[0]["val/loss"] > result.best_value
    assert result.best_value < 2.0  # ln 30 = 3.4; what is planted: about 1.3
    model = load_pretrained(tmp_path)
    assert model.config.num_blocks == 8  # 5 blocks with a quarter of headroom, and one
    assert not (tmp_path / "scratch").exists()


def test_the_same_seed_gives_the_same_weights_in_memory_and_streamed(city_root, tmp_path):
    kept, streamed = (
        run_pretrain(
            tables(city_root), day=DAY, recipe=change(RECIPE, epochs=2, in_memory_rows=rows, buffer_rows=5),
            layout=None, folder=tmp_path / str(rows), log=ignore,
        )
        for rows in (0, 1000)
    )  # fmt: skip

    assert kept.validations == streamed.validations
    one, other = (load_pretrained(tmp_path / rows).state_dict() for rows in ("0", "1000"))
    assert all(torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one)


def test_an_interrupted_pretraining_ends_with_the_same_bits(city_root, tmp_path):
    class PowerCutError(Exception):
        pass

    def die_at(metrics: object, step: int) -> None:
        if step >= 9:
            raise PowerCutError

    recipe = change(RECIPE, epochs=5)
    arguments = {"day": DAY, "recipe": recipe, "layout": None}
    whole = run_pretrain(tables(city_root), folder=tmp_path / "whole", log=ignore, **arguments)
    with pytest.raises(PowerCutError):
        run_pretrain(tables(city_root), folder=tmp_path / "cut", log=die_at, **arguments)

    resumed = run_pretrain(tables(city_root), folder=tmp_path / "cut", log=ignore, **arguments)

    assert resumed.is_resumed
    assert resumed.validations == whole.validations
    one, other = (load_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one)


def test_a_new_decoder_knows_slots_and_places_of_the_index(city_root):
    model, slots = build_decoder(RECIPE, tables(city_root).poi_index, tables(city_root).blocks)

    assert slots.count_inners()[:5].tolist() == [8] * 5
    assert_close(model.trunk.embedding.block_centers_V2[1], torch.tensor([4.87, 52.31]), atol=1e-5, rtol=0)
    assert model.trunk.embedding.block_centers_V2[5:].isnan().all()
    rows, known = model.trunk.embedding.poi_vectors.rows(torch.arange(5), torch.full((5,), 7))
    assert known.all()
    assert len(rows.unique()) == 5


def test_the_paper_model_is_one_switch_away(city_root, tmp_path):
    decoder = RECIPE.decoder.model_copy(
        update={"memory": RECIPE.decoder.memory.model_copy(update={"enabled": False}), "poi_vectors": "off"}
    )
    recipe = change(RECIPE.model_copy(update={"decoder": decoder}), epochs=1)

    run_pretrain(tables(city_root), day=DAY, recipe=recipe, layout=None, folder=tmp_path, log=ignore)

    assert load_pretrained(tmp_path).history_copy is None


def test_a_day_without_samples_says_so(city_root, tmp_path):
    with pytest.raises(NoTrainingDataError, match="2031-01-01"):
        run_pretrain(
            tables(city_root), day="2031-01-01", recipe=RECIPE, layout=None, folder=tmp_path, log=ignore
        )


def test_a_missing_table_is_named(city_root, tmp_path):
    nowhere = PretrainTables(*(TableAt(str(tmp_path / "none")) for _ in range(3)))

    with pytest.raises(MissingInputError, match="none"):
        run_pretrain(nowhere, day=DAY, recipe=RECIPE, layout=None, folder=tmp_path / "f", log=ignore)


def test_progress_is_logged_where_there_is_no_terminal(city_root, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run_pretrain(
            tables(city_root),
            day=DAY,
            recipe=change(RECIPE, epochs=1),
            layout=None,
            folder=tmp_path,
            log=ignore,
        )

    assert "pretrain step 4: val/loss" in caplog.text
