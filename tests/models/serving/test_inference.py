"""Inference on Arrow rows: equal to the model asked directly, whatever the batch size and row order."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from conf.errors import MissingInputError
from models.data.batch import collate_candidates, collate_history, collate_requests
from models.serving.bundle import ModelBundle
from models.serving.inference import (
    batch_by_length,
    encode_pois,
    encode_user_requests,
    encode_users,
    find_histories,
    generate_candidates,
    rank_targets_by_model,
    score_candidates,
)

TOLERANCE = 1e-5


@pytest.fixture
def bundle(make_decoder, tmp_path) -> ModelBundle:
    """A bundle whose stages are random decoders, held in memory."""
    decoders = {
        stage: make_decoder(seed=seed)
        for seed, stage in enumerate(("pretrain", "sft_embedding", "sft_ranking"))
    }
    loaded = {(stage, "cpu"): decoder for stage, decoder in decoders.items()}
    layout = decoders["pretrain"].config.layout
    return ModelBundle(tmp_path, layout, tuple(decoders), 8, True, {}, loaded)


@pytest.fixture
def pois(city_tables) -> pa.RecordBatch:
    """All slots of the city."""
    return city_tables["poi_index"].combine_chunks().to_batches()[0]


def _shuffled(batch: pa.RecordBatch) -> tuple[np.ndarray, pa.RecordBatch]:
    order = np.random.default_rng(3).permutation(batch.num_rows)
    return order, batch.take(pa.array(order))


@pytest.mark.parametrize("encode", [encode_users, encode_user_requests])
def test_user_vectors_do_not_depend_on_batch_size_or_row_order(bundle, requests_batch, encode):
    vectors = encode(bundle, requests_batch, micro_batch=64)
    order, shuffled = _shuffled(requests_batch)
    np.testing.assert_allclose(encode(bundle, requests_batch, micro_batch=1), vectors, atol=TOLERANCE)
    np.testing.assert_allclose(encode(bundle, shuffled, micro_batch=3), vectors[order], atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=TOLERANCE)


def test_user_vectors_are_of_the_neutral_request(bundle, requests_batch):
    later = requests_batch.set_column(
        requests_batch.schema.get_field_index("request_ts_ms"), "request_ts_ms",
        pa.array(np.asarray(requests_batch.column("request_ts_ms")) + 12 * 3_600_000),
    )  # fmt: skip
    np.testing.assert_array_equal(encode_users(bundle, later), encode_users(bundle, requests_batch))
    assert not np.allclose(encode_user_requests(bundle, later), encode_user_requests(bundle, requests_batch))


def test_poi_vectors_do_not_depend_on_batch_size_or_row_order(bundle, pois):
    vectors = encode_pois(bundle, pois)
    order, shuffled = _shuffled(pois)
    np.testing.assert_allclose(encode_pois(bundle, shuffled, micro_batch=7), vectors[order], atol=TOLERANCE)
    np.testing.assert_allclose(encode_pois(bundle, pois.slice(5, 3)), vectors[5:8], atol=TOLERANCE)


@torch.inference_mode()
def test_scores_equal_the_model_asked_for_one_request_at_a_time(bundle, requests_batch):
    scores = score_candidates(bundle, requests_batch, micro_batch=4)
    model = bundle.model("sft_ranking")
    for row in range(requests_batch.num_rows):
        one = requests_batch.slice(row, 1)
        prefix = model.encode_prefix(collate_history(one))
        states = model.candidate_states(prefix, collate_requests(one), collate_candidates(one))
        np.testing.assert_allclose(scores[row], model.click_logits(states)[0].numpy(), atol=TOLERANCE)


def test_requests_with_the_same_past_share_one_pass_over_it(bundle, requests_batch, monkeypatch):
    later_ms = pa.array(np.asarray(requests_batch.column("request_ts_ms")) + 3_600_000)
    index = requests_batch.schema.get_field_index("request_ts_ms")
    columns = [*requests_batch.columns[:index], later_ms, *requests_batch.columns[index + 1 :]]
    later = pa.RecordBatch.from_arrays(columns, schema=requests_batch.schema)
    both = pa.Table.from_batches([requests_batch, later]).combine_chunks().to_batches()[0]
    apart = score_candidates(bundle, requests_batch) + score_candidates(bundle, later)
    read, encode = [], bundle.model("sft_ranking").encode_prefix
    monkeypatch.setattr(
        bundle.model("sft_ranking"), "encode_prefix",
        lambda history: (read.extend(history.lengths_B.tolist()), encode(history))[1],
    )  # fmt: skip

    together = score_candidates(bundle, both)

    assert len(read) == len(find_histories(requests_batch)[0]) <= requests_batch.num_rows
    for own, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(own, other, atol=TOLERANCE)


def test_histories_are_equal_only_if_every_column_is(requests_batch):
    rows = requests_batch.to_pylist()[:1] * 3
    rows[2] = {**rows[2], "category_ids": [*rows[2]["category_ids"][:-1], 99]}

    first, place = find_histories(pa.RecordBatch.from_pylist(rows, schema=requests_batch.schema))

    assert (first.tolist(), place.tolist()) == ([0, 2], [0, 0, 1])


def test_a_request_without_candidates_gets_no_scores(bundle, requests_batch):
    rows = requests_batch.to_pylist()[:2]
    for name in rows[1]:
        if name.startswith("candidate_") or name == "labels":
            rows[1][name] = []
    scores = score_candidates(bundle, pa.RecordBatch.from_pylist(rows, schema=requests_batch.schema))
    assert [len(own) for own in scores] == [4, 0]


def test_generated_lists_do_not_depend_on_batch_size_or_row_order(bundle, requests_batch, catalogue):
    found = generate_candidates(bundle, requests_batch, catalogue, top_k=5, micro_batch=64)
    order, shuffled = _shuffled(requests_batch)
    again = generate_candidates(bundle, shuffled, catalogue, top_k=5, micro_batch=2)
    for row, made in zip(order, again, strict=True):
        assert made.pois.tolist() == found[row].pois.tolist()
        assert made.sources.tolist() == found[row].sources.tolist()
        np.testing.assert_allclose(made.log_probs, found[row].log_probs, atol=TOLERANCE)
        np.testing.assert_allclose(made.p_new, found[row].p_new, atol=TOLERANCE)


def test_generated_pois_are_live_on_the_day_of_their_request(bundle, requests_batch, catalogue):
    times = np.asarray(requests_batch.column("request_ts_ms")).copy()
    times[::2] += 40 * 86_400_000  # half of the requests after the openings and closures of 1 February
    index = requests_batch.schema.get_field_index("request_ts_ms")
    moved = requests_batch.set_column(index, "request_ts_ms", pa.array(times))
    live = catalogue.live_mask(times)
    for row, made in enumerate(generate_candidates(bundle, moved, catalogue, top_k=100)):
        assert sorted(made.pois) == np.flatnonzero(live[row]).tolist()


def test_ranks_agree_with_the_generated_order(bundle, requests_batch, catalogue):
    lists = generate_candidates(bundle, requests_batch, catalogue, top_k=3)
    third = np.array([made.pois[2] for made in lists])
    ranks = rank_targets_by_model(bundle.model("pretrain"), requests_batch, third, catalogue, micro_batch=3)
    assert ranks.expected.tolist() == [3.0] * 10


def test_long_histories_meet_in_smaller_batches():
    lengths = np.array([30, 10, 100, 0, 20])

    batches = [rows.tolist() for rows in batch_by_length(lengths, 3, max_actions=60)]

    assert batches == [[3, 1, 4], [0], [2]]  # 3 x 20 actions fit; 2 x 100 would not, and 100 alone must


def test_no_rows_give_no_results(bundle, requests_batch, catalogue):
    none = requests_batch.slice(0, 0)
    assert encode_users(bundle, none).shape == (0, 8)
    assert score_candidates(bundle, none) == []
    assert generate_candidates(bundle, none, catalogue, top_k=3) == []


def test_a_stage_that_was_not_trained_is_named(bundle):
    with pytest.raises(MissingInputError, match="stage align_dpo"):
        bundle.model("align_dpo")
