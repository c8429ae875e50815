"""The gate: on equal rows a challenger must beat popularity and not fall behind the champion."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from conf.errors import PromotionRefusedError
from models.data.catalogue import Catalogue
from models.data.ranks import Ranks
from models.evaluation.generator_choice import choose_generator, sample_rows
from models.evaluation.release_split import build_rows
from models.network.checkpoint import save_stage
from models.registry.gate import Verdict, describe_missing
from models.registry.next_poi_gate import TOLERANCE, judge_next_poi
from models.registry.register import register_bundle
from models.serving.bundle import load_bundle, save_bundle
from models.tracking import open_training_run


@pytest.fixture
def rows(city_tables):
    """Validation rows of the city."""
    samples = city_tables["pretrain_samples"]
    train, val = (
        samples.filter(pa.array([s == split for s in samples["split"].to_pylist()]))
        for split in ("train", "val")
    )
    return build_rows(train, val, Catalogue.from_arrow(city_tables["poi_index"]))


def test_a_model_without_an_output_that_a_champion_has_is_refused():
    whole, part = (
        SimpleNamespace(stage_names=names) for names in (("pretrain", "sft_embedding"), ("pretrain",))
    )

    (reason,) = describe_missing(part, {"m/3": whole, "m/2": part})

    assert "no sft_embedding, which champion m/3 has" in reason
    assert describe_missing(whole, {"m/2": part}) == ()


@pytest.fixture
def make_bundle(make_decoder, tmp_path):
    """Makes a bundle with one stage of random weights."""

    def make(name: str, seed: int):
        model = make_decoder(seed=seed)
        stage = save_stage(tmp_path / name / "model", model)
        content = {"embedding_dim": 8, "is_simulated": True, "day": "2026-03-01"}
        return load_bundle(
            save_bundle(
                tmp_path / name / "bundle", {"pretrain": stage}, layout=model.config.layout, content=content
            )
        )

    return make


def _ranks(monkeypatch, by_bundle: dict[str, int], num_rows: int) -> None:
    """Makes every target of a bundle stand at one rank."""
    monkeypatch.setattr(
        "models.registry.next_poi_gate.rank_by_stage",
        lambda rows, bundle, stage: Ranks(
            np.full(num_rows, by_bundle[bundle.folder.parent.name] - 1), np.ones(num_rows, np.int64)
        ),
    )


def test_the_first_model_only_has_to_beat_popularity(rows, make_bundle, monkeypatch):
    _ranks(monkeypatch, {"new": 1}, 120)
    assert judge_next_poi(rows, make_bundle("new", 1), {}).reasons == ()
    _ranks(monkeypatch, {"new": 35}, 120)
    reasons = judge_next_poi(rows, make_bundle("new", 1), {}).reasons
    assert len(reasons) == 1
    assert "does not beat popularity" in reasons[0]


def test_a_challenger_below_the_champion_is_refused(rows, make_bundle, monkeypatch):
    _ranks(monkeypatch, {"new": 2, "old": 1}, 120)
    verdict = judge_next_poi(rows, make_bundle("new", 1), {"gate/1": make_bundle("old", 2)})
    assert verdict.champion == 1.0
    assert verdict.challenger == 0.5
    assert "below that of the champion gate/1" in verdict.reasons[0]


def test_a_challenger_within_the_tolerance_passes(rows, make_bundle, monkeypatch):
    ranks = np.ones(120, np.int64)
    ranks[0] = 2  # mean reciprocal rank 1 - .5 / 120, within the tolerance
    assert TOLERANCE > 0.5 / 120
    found = {"new": Ranks(ranks - 1, np.ones(120, np.int64)), "old": Ranks(ranks * 0, np.ones(120, np.int64))}
    monkeypatch.setattr(
        "models.registry.next_poi_gate.rank_by_stage",
        lambda rows, bundle, stage: found[bundle.folder.parent.name],
    )
    assert judge_next_poi(rows, make_bundle("new", 1), {"gate/1": make_bundle("old", 2)}).reasons == ()


def test_the_gate_looks_at_the_same_rows_whatever_their_order(rows):
    some = sample_rows(rows, 20)
    shuffled = sample_rows(rows.take(np.random.default_rng(0).permutation(120)), 20)
    assert sorted(some.requests.row_ids) == sorted(shuffled.requests.row_ids)


@pytest.mark.parametrize(("aligned_rank", "chosen"), [(1, "align_dpo"), (2, "align_dpo"), (3, "pretrain")])
def test_the_stage_that_ranks_better_generates(
    rows, make_decoder, tmp_path, monkeypatch, aligned_rank, chosen
):
    model = make_decoder()
    stage = save_stage(tmp_path / "model", model)
    folder = save_bundle(
        tmp_path / "bundle",
        {"pretrain": stage, "align_dpo": stage},
        layout=model.config.layout,
        content={"embedding_dim": 8, "is_simulated": True},
    )
    rank = {"pretrain": 2, "align_dpo": aligned_rank}
    monkeypatch.setattr(
        "models.evaluation.generator_choice.rank_by_stage",
        lambda rows, bundle, stage: Ranks(np.full(120, rank[stage] - 1), np.ones(120, np.int64)),
    )

    choice = choose_generator(rows, load_bundle(folder))

    assert choice.mrr == {"pretrain": 0.5, "align_dpo": 1 / aligned_rank}
    assert load_bundle(folder).generator_stage == choice.stage == chosen
    assert choice.reciprocal_ranks.tolist() == [choice.mrr[chosen]] * 120
    judged = judge_next_poi(rows, load_bundle(folder), {}, choice=choice)
    assert judged.challenger == choice.mrr[chosen]  # the gate takes what was found


def test_a_refused_bundle_stays_challenger_and_strict_makes_it_an_error(
    rows, make_bundle, monkeypatch, city_settings, tmp_path
):
    settings = city_settings.model_copy(
        update={"mlflow": city_settings.mlflow.model_copy(update={"model_name": "gate"})}
    )
    _ranks(monkeypatch, {"old": 1, "new": 3}, 120)
    with open_training_run(settings.mlflow, tmp_path, name="gate") as log:
        old, new = make_bundle("old", 2), make_bundle("new", 1)
        first = register_bundle(old, Verdict(judge_next_poi(rows, old, {})), settings, log)
        verdict = Verdict(judge_next_poi(rows, new, {"gate/1": old}))
        second = register_bundle(new, verdict, settings, log)
        assert (first.model_version, first.is_champion) == ("gate/1", True)
        assert (second.model_version, second.is_champion) == ("gate/2", False)
        model = log.client.get_registered_model("gate")
        assert {alias: int(number) for alias, number in model.aliases.items()} == {
            "champion": 1,
            "challenger": 2,
        }
        with pytest.raises(PromotionRefusedError, match="gate/2 was not promoted"):
            register_bundle(new, verdict, settings, log, strict=True)
        assert len(log.client.search_model_versions("name = 'gate'")) == 2  # the same files, the same version
        tags = log.client.get_model_version("gate", "2").tags
        assert tags["index_version"] == "1"
        assert tags["gate_champion"] == "1.0"
        assert tags["simulated"] == "true"
