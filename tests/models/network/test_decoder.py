"""The traps of docs/design.md 4, switches, distributions that sum to one, towers."""

import pytest
import torch
from torch.testing import assert_close

from models.config import DecoderConfig, InterestMatchConfig
from models.data.batch import HistoryBatch, RequestBatch
from models.network.decoder import SpacetimeDecoder
from tests.models.tiny import (
    MAX_INNER,
    NUM_BLOCKS,
    cut_step,
    drop_columns,
    tiny_candidates,
    tiny_decoder,
    tiny_history,
    tiny_requests,
    tiny_slots,
)

SOME_DEAD = tiny_slots(without=[(0, 1), (2, 3)])
ALL_BLOCKS = torch.arange(NUM_BLOCKS)[None].expand(3, NUM_BLOCKS)
VARIANTS = [
    {},
    {"memory": False},
    {"poi_vectors": "hashed"},
    {"poi_vectors": "off"},
    {"tie_embeddings": False},
    {"num_kv_heads": 4},
    {"hide_request_time": True},
    {"interest_match": InterestMatchConfig(enabled=True)},
    {"routines": True},
]


def change(history: HistoryBatch, row: int, step: int, **values: object) -> HistoryBatch:
    """A copy with some fields of one action replaced."""
    fields = {name: getattr(history, name).clone() for name in values}
    for name, value in values.items():
        fields[name][row, step] = torch.as_tensor(value, dtype=fields[name].dtype)
    return history._replace(**fields)


def read_states(model: SpacetimeDecoder, history: HistoryBatch) -> torch.Tensor:
    """States of all tokens of a window that holds the whole history."""
    spacetime, inner = model.trunk.embed_history(history)
    index = torch.arange(history.timestamps_BL.shape[1]).expand_as(history.timestamps_BL)
    return model.trunk.read_window(history, spacetime, inner, index)[0]


# --- trap 1: what the block token may know ---------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, {"tie_side_information": True}], ids=str)
def test_category_and_place_of_a_target_do_not_move_its_own_prediction(variant):
    model, history, live = tiny_decoder(**variant), tiny_history(), tiny_slots()
    other = change(history, 0, 8, categories_BL=3, poi_lonlat_BL2=[9.0, 9.0])

    before, after = model.next_poi_log_probs(history, live), model.next_poi_log_probs(other, live)

    assert_close(after.block_BQ, before.block_BQ)
    assert_close(after.inner_BQ, before.inner_BQ)


def test_category_of_an_action_moves_the_next_prediction():
    model, history = tiny_decoder(), tiny_history()
    other = change(history, 0, 7, categories_BL=(history.categories_BL[0, 7] + 1) % 4)

    before, after = model.next_poi_log_probs(history), model.next_poi_log_probs(other)

    assert before.block_BQ[0, -1] != after.block_BQ[0, -1]  # step 8 saw action 7
    assert_close(after.block_BQ[0, :-1], before.block_BQ[0, :-1])  # earlier steps did not


def test_inner_id_of_a_target_does_not_move_its_block_prediction():
    model, history = tiny_decoder(), tiny_history()
    other = change(history, 0, 8, inners_BL=(history.inners_BL[0, 8] + 1) % MAX_INNER)

    assert_close(model.next_poi_log_probs(other).block_BQ, model.next_poi_log_probs(history).block_BQ)


# --- trap 2: what the spacetime token may know -----------------------------------------------------------


def test_a_prediction_depends_on_request_time_and_user_place_not_on_the_targets():
    model, history = tiny_decoder(), tiny_history()
    later = change(history, 0, 8, timestamps_BL=history.timestamps_BL[0, 8] + 7_200_000)
    elsewhere = change(history, 0, 8, user_lonlat_BL2=[5.0, 5.0])
    target_moved = change(history, 0, 8, poi_lonlat_BL2=[5.0, 5.0])

    base = model.next_poi_log_probs(history).block_BQ[0, -1]

    assert model.next_poi_log_probs(later).block_BQ[0, -1] != base
    assert model.next_poi_log_probs(elsewhere).block_BQ[0, -1] != base
    assert model.next_poi_log_probs(target_moved).block_BQ[0, -1] == base


# --- trap 3: candidates ----------------------------------------------------------------------------------


def test_scores_do_not_depend_on_order_number_or_padding_of_candidates():
    model, history = tiny_decoder(), tiny_history()
    prefix, request, candidates = (
        model.encode_prefix(history),
        tiny_requests(history),
        tiny_candidates((4, 4, 4)),
    )
    turned = type(candidates)(candidates.lengths_B, *(field.flip(1) for field in candidates[1:5]))
    alone = type(candidates)(candidates.lengths_B, *(field[:, :1] for field in candidates[1:5]))

    logits = model.click_logits(model.candidate_states(prefix, request, candidates))

    flipped = model.click_logits(model.candidate_states(prefix, request, turned)).flip(1)
    assert_close(flipped, logits)
    assert_close(model.click_logits(model.candidate_states(prefix, request, alone)), logits[:, :1])


def test_a_candidate_is_read_at_the_position_after_the_user_part():
    """As if it were the next action of the user: the same states as in a history that ends with it."""
    model = tiny_decoder(memory=False)
    history = tiny_history((5, 5, 5), num_profile=0)
    steps = torch.full((3,), 4)
    past, request = cut_step(history, steps)
    candidates = tiny_candidates((1, 1, 1))._replace(
        blocks_BC=history.blocks_BL[:, 4:],
        inners_BC=history.inners_BL[:, 4:],
        lonlat_BC2=history.poi_lonlat_BL2[:, 4:],
        categories_BC=history.categories_BL[:, 4:],
    )

    states = model.candidate_states(model.encode_prefix(past), request, candidates).states_BCD[:, 0]

    assert_close(states, read_states(model, history)[:, -1])


# --- trap 4: one number, two ways ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_training_and_serving_give_the_same_log_probabilities(variant):
    model, history = tiny_decoder(**variant), tiny_history()
    trained = model.next_poi_log_probs(history)
    last = history.lengths_B - 1
    past, request = cut_step(history, last)
    rows, at = torch.arange(3), trained.is_target_BQ.sum(dim=1) - 1

    state = model.request_state(model.encode_prefix(past), request)
    block = model.block_log_probs(state)[rows, history.blocks_BL[rows, last]]
    inner = model.inner_log_probs(state, ALL_BLOCKS)[
        rows, history.blocks_BL[rows, last], history.inners_BL[rows, last]
    ]

    assert_close(trained.block_BQ[rows, at], block)
    assert_close(trained.inner_BQ[rows, at], inner)
    poi = model.poi_log_probs(state, history.blocks_BL[rows, last, None], history.inners_BL[rows, last, None])
    assert_close(poi[:, 0], block + inner)


@pytest.mark.parametrize(
    ("live", "variant"),
    [(None, {}), (SOME_DEAD, {}), (SOME_DEAD, {"tie_side_information": True})],
    ids=["all", "some dead", "some dead, side information in outputs"],
)
def test_training_and_serving_agree_about_dead_slots(live, variant):
    model, history = tiny_decoder(**variant), tiny_history()
    last = history.lengths_B - 1
    history.blocks_BL[torch.arange(3), last], history.inners_BL[torch.arange(3), last] = 1, 2
    past, request = cut_step(history, last)
    trained = model.next_poi_log_probs(history, live)
    at = trained.is_target_BQ.sum(dim=1) - 1

    state = model.request_state(model.encode_prefix(past), request, live)
    block, inner = model.block_log_probs(state), model.inner_log_probs(state, ALL_BLOCKS)

    assert_close(trained.block_BQ[torch.arange(3), at], block[:, 1])
    assert_close(trained.inner_BQ[torch.arange(3), at], inner[:, 1, 2])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padding_and_batch_mates_change_nothing(variant):
    model, history = tiny_decoder(**variant), tiny_history((9, 4, 0))
    request, candidates = tiny_requests(history), tiny_candidates()
    together = _all_outputs(model, history, request, candidates)

    for row, length in enumerate((9, 4, 0)):
        one = HistoryBatch(*(None if field is None else field[row : row + 1] for field in history))
        own_profile = one.profile_ids_BP[:, : int((one.profile_ids_BP > 0).sum())]
        one = drop_columns(one._replace(profile_ids_BP=own_profile), length)
        asked = RequestBatch(*(None if field is None else field[row : row + 1] for field in request))
        shown = type(candidates)(*(field[row : row + 1] for field in candidates[:5]))
        for name, alone in _all_outputs(model, one, asked, shown).items():
            assert_close(alone[0], together[name][row], msg=lambda text, name=name: f"{name}: {text}")


def test_windows_longer_than_the_transformer_reads_agree_too():
    """The predicted step sees the last window - 1 actions before it, in training and in serving."""
    model, history = tiny_decoder(memory=False), tiny_history((9, 9, 9))
    last = history.lengths_B - 1
    past, request = cut_step(history, last)

    served = model.block_log_probs(model.request_state(model.encode_prefix(past), request))

    trained = model.next_poi_log_probs(history).block_BQ[:, -1]
    assert_close(trained, served[torch.arange(3), history.blocks_BL[:, -1]])


def _all_outputs(model, history, request, candidates) -> dict[str, torch.Tensor]:
    prefix = model.encode_prefix(history)
    state = model.request_state(prefix, request)
    shown = model.candidate_states(prefix, request, candidates)
    return {
        "block": model.block_log_probs(state),
        "inner": model.inner_log_probs(state, ALL_BLOCKS[: len(history.lengths_B)]),
        "click": model.click_logits(shown),
        "user": model.user_state(prefix, request),
        "user without request": model.user_state(prefix),
    }


# --- distributions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("live", [None, tiny_slots(without=[(0, 1), (2, 3)])], ids=["all", "some dead"])
def test_probabilities_of_blocks_and_of_inner_ids_sum_to_one(variant, live):
    model, history = tiny_decoder(**variant), tiny_history((9, 4, 0))

    state = model.request_state(model.encode_prefix(history), tiny_requests(history), live)

    assert_close(model.block_log_probs(state).exp().sum(dim=-1), torch.ones(3))
    inner = model.inner_log_probs(state, ALL_BLOCKS).exp()
    assert_close(inner.sum(dim=-1), torch.ones(3, NUM_BLOCKS))
    if live is not None:
        assert inner[:, 0, 1].max() == 0
        assert inner[:, 2, 3].max() == 0


def test_a_block_without_a_live_slot_is_never_predicted():
    model, history = tiny_decoder(), tiny_history()
    live = tiny_slots(without=[(3, inner) for inner in range(MAX_INNER)])

    state = model.request_state(model.encode_prefix(history), tiny_requests(history), live)

    assert model.block_log_probs(state)[:, 3].exp().max() == 0
    assert model.inner_log_probs(state, torch.full((3, 1), 3)).exp().max() == 0
    assert model.poi_log_probs(state, torch.full((3, 1), 3), torch.zeros(3, 1).long()).exp().max() == 0


def test_targets_among_the_context_or_outside_the_window_do_not_count():
    model, history = tiny_decoder(), tiny_history((9, 4, 1))

    counted = model.next_poi_log_probs(history._replace(num_context_B=torch.tensor([7, 0, 0]))).is_target_BQ

    assert counted.sum(dim=1).tolist() == [
        2,
        4,
        1,
    ]  # actions 7 and 8; without context the window would give 6


def test_a_poi_newer_than_the_model_is_read_but_not_learned():
    model, history = tiny_decoder(), tiny_history()
    newer = change(history, 0, 8, inners_BL=MAX_INNER + 3, blocks_BL=NUM_BLOCKS + 1)

    log_probs = model.next_poi_log_probs(newer)

    assert log_probs.is_target_BQ.sum() == model.next_poi_log_probs(history).is_target_BQ.sum() - 1
    assert log_probs.block_BQ.isfinite().all()
    state = model.request_state(model.encode_prefix(newer), tiny_requests(newer))
    assert_close(model.block_log_probs(state).exp().sum(dim=-1), torch.ones(3))


# --- towers and switches ---------------------------------------------------------------------------------


def test_vectors_of_both_towers_have_length_one():
    model, history = tiny_decoder(), tiny_history((9, 4, 0))
    users = model.user_state(model.encode_prefix(history), tiny_requests(history))

    assert_close(users.norm(dim=-1), torch.ones(3))
    assert_close(model.poi_state(tiny_candidates((4, 4, 4))).norm(dim=-1), torch.ones(3, 4))


def test_a_neutral_request_does_not_look_at_the_other_fields():
    model, history = tiny_decoder(), tiny_history()
    prefix, request = model.encode_prefix(history), tiny_requests(history)
    dropped = request._replace(is_neutral_B=torch.tensor([True, False, True]))

    mixed, neutral, asked = (model.user_state(prefix, r) for r in (dropped, None, request))

    assert_close(mixed, torch.stack([neutral[0], asked[1], neutral[2]]))


def test_a_poi_vector_depends_on_its_poi_alone():
    model, candidates = tiny_decoder(), tiny_candidates((4, 4, 4))
    one = type(candidates)(torch.tensor([1]), *(field[1:2, 2:3] for field in candidates[1:5]))

    assert_close(model.poi_state(one)[0, 0], model.poi_state(candidates)[1, 2])


def test_with_the_memory_off_the_generator_is_all_there_is():
    model, history = tiny_decoder(memory=False), tiny_history()
    state = model.request_state(model.encode_prefix(history), tiny_requests(history))
    embedding = model.trunk.embedding

    assert not any("history_copy." in name for name, _ in model.named_parameters())
    assert_close(
        model.block_log_probs(state), model.generator.block_log_probs(state.state_BD, embedding, None)
    )


@pytest.mark.parametrize("variant", [{}, {"hide_request_time": True}], ids=["clock shown", "clock hidden"])
def test_without_a_memory_the_past_before_the_window_is_cut_off_and_changes_nothing(variant):
    model, history = tiny_decoder(memory=False, **variant), tiny_history((14, 9, 3))

    cut = model.next_poi_log_probs(history)

    model._needed = lambda whole: whole
    assert_close(cut, model.next_poi_log_probs(history))


def test_without_spacetime_neither_times_nor_places_are_read():
    model, history = tiny_decoder(memory=False, spacetime=False), tiny_history()
    moved = history._replace(
        timestamps_BL=2 * history.timestamps_BL,
        user_lonlat_BL2=history.user_lonlat_BL2 + 1,
        poi_lonlat_BL2=history.poi_lonlat_BL2 + 1,
    )

    assert_close(model.next_poi_log_probs(moved), model.next_poi_log_probs(history))


def test_output_vectors_are_the_input_vectors():
    model, history = tiny_decoder(memory=False), tiny_history()
    before = model.block_log_probs(model.request_state(model.encode_prefix(history), tiny_requests(history)))
    with torch.no_grad():
        model.trunk.embedding.blocks.weight[-1] += 1.0

    after = model.block_log_probs(model.request_state(model.encode_prefix(history), tiny_requests(history)))

    assert not torch.allclose(before[:, -1], after[:, -1])
    assert not any(name.startswith("generator") for name, _ in model.named_parameters())


def test_every_weight_of_pretraining_learns():
    model, history = tiny_decoder(), tiny_history()
    log_probs = model.next_poi_log_probs(history)
    (log_probs.block_BQ.sum() + log_probs.inner_BQ.sum()).backward()

    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}

    assert silent == {
        "history_copy.value.weight", "user_projection.weight", "poi_projection.weight",
        "click.state.weight", "click.state.bias", "click.memory.weight",
    }  # fmt: skip


def test_a_decoder_without_vocabulary_sizes_is_refused():
    with pytest.raises(ValueError, match="with_layout"):
        SpacetimeDecoder(DecoderConfig())
