"""The embedding half of the gate, on vectors that are written down."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from models.data.catalogue import Catalogue
from models.evaluation.release_split import build_rows
from models.network.checkpoint import save_stage
from models.registry import embedding_gate
from models.registry.embedding_gate import judge_embeddings
from models.serving.bundle import load_bundle, save_bundle


@pytest.fixture
def rows(city_tables):
    """Validation rows of the city; what matters here are its catalogue and its counts."""
    samples = city_tables["pretrain_samples"]
    train, val = (
        samples.filter(pa.array([s == split for s in samples["split"].to_pylist()]))
        for split in ("train", "val")
    )
    return build_rows(train, val, Catalogue.from_arrow(city_tables["poi_index"]))


@pytest.fixture
def samples(city_tables):
    """Requests of twelve users, one click each."""
    return city_tables["ranking_samples"].slice(0, 36)


@pytest.fixture
def bundle_with(monkeypatch, rows):
    """Makes bundles whose POI vectors are given by row of the catalogue, and whose users point at what they click."""
    catalogue = rows.catalogue

    def users(bundle, batch):
        row_of = {poi: row for row, poi in enumerate(catalogue.poi_ids)}
        clicked = [row_of[pois[labels.index(1)]] for pois, labels in zip(
            batch["candidate_poi_ids"].to_pylist(), batch["labels"].to_pylist(), strict=True
        )]  # fmt: skip
        return bundle.users(np.array(clicked)).astype(np.float32)

    def score(shown, bundle):
        vectors, of_poi = users(bundle, shown.requests.to_batches()[0]), bundle.pois
        row_of = {poi: row for row, poi in enumerate(catalogue.poi_ids)}
        pois = of_poi[[row_of[poi] for poi in shown.flat("candidate_poi_ids")]]
        return (vectors[shown.request_rows] * pois).sum(axis=1).astype(np.float64)

    monkeypatch.setattr(embedding_gate, "encode_user_requests", users)
    monkeypatch.setattr(embedding_gate, "encode_pois", lambda bundle, batch: bundle.pois.astype(np.float32))
    monkeypatch.setattr(embedding_gate, "score_by_embeddings", score)

    def make(pois, users=None):
        return SimpleNamespace(
            stage_names=("sft_embedding",), pois=pois, users=users or (lambda clicked: pois[clicked])
        )

    return make


@pytest.fixture
def vectors(rows):
    """Different unit vectors, one per POI."""
    drawn = np.random.default_rng(1).standard_normal((len(rows.catalogue), 16))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_vectors_that_point_at_what_is_clicked_pass(rows, samples, bundle_with, vectors):
    verdict = judge_embeddings(rows, samples, bundle_with(vectors), {})

    assert verdict.reasons == ()
    assert (verdict.mrr, verdict.auc, verdict.requests, verdict.clicks) == (1.0, 1.0, 36, 36)
    assert 0 < verdict.popularity_mrr < 1


def test_vectors_that_find_less_than_popularity_are_refused(rows, samples, bundle_with, vectors):
    away = bundle_with(vectors, users=lambda clicked: -vectors[clicked])

    (reason,) = judge_embeddings(rows, samples, away, {}).reasons

    assert reason.startswith("embedding MRR 0.02")
    assert "does not beat popularity" in reason


@pytest.mark.operations("1")
def test_collapsed_vectors_are_refused_whatever_they_find(rows, samples, bundle_with, vectors):
    sides = (
        np.sign(vectors[:, :1]) * vectors[:1]
    )  # two vectors for all POIs, as a projection of rank one leaves them

    reasons = judge_embeddings(rows, samples, bundle_with(sides), {}).reasons

    assert any("POI vectors: 0.050 of 40 vectors differ" in reason for reason in reasons)
    assert any("POI vectors: effective rank 1.00" in reason for reason in reasons)


def test_what_is_not_a_number_is_refused(rows, samples, bundle_with, vectors):
    broken = vectors.copy()
    broken[3] = np.nan

    (reason,) = judge_embeddings(rows, samples, bundle_with(broken), {}).reasons

    assert "vectors hold what is not a finite number" in reason


def test_the_best_of_the_champions_sets_the_mark(rows, samples, bundle_with, vectors):
    noise = np.random.default_rng(2).standard_normal(vectors.shape)
    worse = bundle_with(vectors, users=lambda clicked: vectors[clicked] + 0.8 * noise[clicked])
    champions = {"m/2": worse, "m/1": bundle_with(vectors)}

    verdict = judge_embeddings(rows, samples, worse, champions)

    assert verdict.champion_mrr == 1.0
    assert verdict.mrr > verdict.popularity_mrr
    assert any("is below that of the champion m/1, 1.0000" in reason for reason in verdict.reasons)
    assert judge_embeddings(rows, samples, worse, {"m/2": worse}).reasons == ()


@pytest.mark.parametrize(("noise", "passes"), [(0.8, True), (2.0, False)])
def test_vectors_that_order_better_may_find_less_but_not_most(
    rows, samples, bundle_with, vectors, monkeypatch, noise, passes
):
    def score(shown, bundle):
        return shown.labels * float(bundle.orders_well)

    monkeypatch.setattr(embedding_gate, "score_by_embeddings", score)
    away = noise * np.random.default_rng(2).standard_normal(vectors.shape)
    challenger = bundle_with(vectors, users=lambda clicked: vectors[clicked] + away[clicked])
    champion = bundle_with(vectors)
    champion.orders_well, challenger.orders_well = False, True

    better = judge_embeddings(rows, samples, challenger, {"m/1": champion})
    challenger.orders_well = False
    no_better = judge_embeddings(rows, samples, challenger, {"m/1": champion})

    assert better.mrr < 0.9 * better.champion_mrr
    assert (better.mrr > 0.5 * better.champion_mrr) == passes
    assert (better.reasons == ()) == passes
    assert any("is below that of the champion" in reason for reason in no_better.reasons)


def test_without_impressions_there_is_no_verdict_and_no_promotion(rows, samples, bundle_with, vectors):
    (reason,) = judge_embeddings(rows, None, bundle_with(vectors), {}).reasons

    assert reason == "embeddings: no verdict, there is no validation row of ranking_samples"


@pytest.mark.operations("1")
def test_projections_of_rank_one_are_refused(rows, samples, make_decoder, tmp_path):
    """As a collapsed training leaves them: the whole way from weights to the verdict."""
    model = make_decoder()
    for layer in (model.user_projection, model.poi_projection):
        layer.weight.data = layer.weight.data[:, :1] @ layer.weight.data[:1]
    folder = save_bundle(
        tmp_path / "bundle",
        {"sft_embedding": save_stage(tmp_path / "model", model)},
        layout=model.config.layout,
        content={"embedding_dim": 8, "is_simulated": True},
    )

    reasons = judge_embeddings(rows, samples, load_bundle(folder), {}).reasons

    assert any("POI vectors: 0.050 of 40 vectors differ" in reason for reason in reasons)
