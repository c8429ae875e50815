"""Interest pre-training: what each POI is compared with, the same vectors as in serving, and a planted taste."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from conf.errors import SettingsError
from models.config import (
    DecoderConfig,
    InterestConfig,
    PretrainConfig,
    RankingSftConfig,
    Recipe,
    TrainConfig,
    load_recipe,
)
from models.data.batch import HistoryBatch, RequestBatch
from models.data.slots import AboutSlots, LiveSlots
from models.network.decoder import SpacetimeDecoder
from models.training import interests
from models.training.interests import InterestLearner, SlotGroups, count_times, draw_alternatives, draw_slots
from models.training.pretrain import load_pretrained, run_pretrain
from tests.models.training.test_pretrain import RECIPE, ignore, tables

BLOCKS, INNERS = 3, 8
HOUR_MS = 3_600_000


def make_slots() -> LiveSlots:
    """Three blocks of eight slots; categories 1 and 2 in turn, so six groups of four slots each."""
    blocks, inners = torch.arange(BLOCKS).repeat_interleave(INNERS), torch.arange(INNERS).repeat(BLOCKS)
    lonlat = torch.stack([4.8 + 0.1 * blocks, 52.3 + 0.01 * inners], dim=-1).float()
    return LiveSlots(
        blocks, inners, num_blocks=BLOCKS, max_inner=INNERS, about=AboutSlots(1 + inners % 2, lonlat)
    )


def make_decoder(slots: LiveSlots, **memory: object) -> SpacetimeDecoder:
    config = DecoderConfig.model_validate(
        {"hidden_dim": 16, "ffn_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "dropout": 0.0,
         "embedding_dropout": 0.0, "window_actions": 12, "embedding_dim": 8, "geo_buckets": 64,
         "interest_match": {"enabled": True, "dropout": 0.0}, "num_blocks": BLOCKS, "max_inner": INNERS,
         "num_categories": 4, "poi_rows": BLOCKS * INNERS + 6, "memory": memory}
    )  # fmt: skip
    torch.manual_seed(1)
    decoder = SpacetimeDecoder(config)
    decoder.assign_poi_rows(slots)
    nn.init.normal_(decoder.embedding.poi_vectors.weight, std=0.5)
    return decoder


def make_history(visits: list[list[tuple[int, int]]]) -> HistoryBatch:
    """Users' visits (block, inner), an hour apart; every visit but the first is a target."""
    longest = max(map(len, visits))

    def padded(values: list[list[int]], fill: int = 0) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

    blocks, inners = (padded([[visit[n] for visit in row] for row in visits]) for n in (0, 1))
    hours = padded([[HOUR_MS * (number + 1) for number in range(len(row))] for row in visits])
    places = torch.full((*blocks.shape, 2), math.nan)
    return HistoryBatch(
        lengths_B=torch.tensor(list(map(len, visits))), num_context_B=torch.zeros(len(visits), dtype=torch.int64),
        timestamps_BL=hours, tz_offsets_BL=torch.zeros_like(hours), user_lonlat_BL2=places,
        action_types_BL=torch.zeros_like(hours), blocks_BL=blocks, inners_BL=inners,
        poi_lonlat_BL2=torch.stack([4.8 + 0.1 * blocks, 52.3 + 0.01 * inners], dim=-1).float(),
        categories_BL=1 + inners % 2,
        is_targets_BL=padded([[0] + [1] * (len(row) - 1) for row in visits]).bool(),
        profile_ids_BP=torch.zeros(len(visits), 0, dtype=torch.int64),
    )  # fmt: skip


def learner_of(decoder: SpacetimeDecoder) -> InterestLearner:
    return InterestLearner(decoder, InterestConfig(enabled=True))


def test_a_softmax_over_all_slots_is_exact_and_a_sample_stands_for_the_rest() -> None:
    chosen = torch.tensor([5, 2, 5])

    whole = draw_slots(chosen, 24, 24, None)
    assert whole.slots[whole.places_T].tolist() == [5, 2, 5]
    assert not whole.correction.any()

    for seed in range(200):  # also where a sample has as many entries as there are slots
        drawn = draw_slots(chosen, 24, 22, torch.Generator().manual_seed(seed))
        assert drawn.slots[drawn.places_T].tolist() == [5, 2, 5]
        assert not set(drawn.slots[2:].tolist()) & {2, 5}
        assert float(drawn.correction.exp().sum()) == pytest.approx(24, rel=1e-5)


@pytest.mark.parametrize("limit", [64, 2])
def test_alternatives_share_category_and_block(limit: int) -> None:
    groups = SlotGroups(make_slots())
    chosen = torch.tensor([0, 9, 23])

    drawn = draw_alternatives(chosen, groups, limit, torch.Generator().manual_seed(3))

    assert drawn.slots[:, 0].tolist() == chosen.tolist()
    for slot, others, correction in zip(chosen.tolist(), drawn.slots, drawn.correction, strict=True):
        kept = others[1:][correction[1:].isfinite()]
        assert all(other // INNERS == slot // INNERS and other % 2 == slot % 2 for other in kept.tolist())
        assert slot not in kept.tolist()
        if len(kept):
            assert float(correction.exp().sum()) == pytest.approx(4)  # the group, itself included


def test_only_known_slots_are_counted() -> None:
    slots = torch.tensor([[7, 3, 7, 3, 5], [1, 1, 1, 0, 0]])
    is_known = torch.tensor([[True, True, True, True, True], [False, True, True, False, False]])

    times = count_times(slots, is_known)

    assert times[0].tolist() == [2, 2, 2, 2, 1]
    assert times[1, 1] == 2


def test_the_match_leaves_each_poi_out_of_its_own_past() -> None:
    slots = make_slots()
    learner, groups = learner_of(make_decoder(slots)), SlotGroups(slots)
    groups.visits_N = torch.arange(24.0)
    history = make_history([[(0, 0), (1, 3), (0, 0), (2, 4)], [(1, 1)]])
    learner.eval()
    decoder, match = learner.decoder, learner.decoder.interest_match

    loss, number = interests.match_loss(learner, decoder.read_targets(history, slots), groups, 64)

    def content(slot: int) -> torch.Tensor:
        candidates = groups.as_candidates(torch.tensor([slot]))
        return match.norm(decoder.trunk.embed_candidates(candidates))[0, 0]

    expected, visited = 0.0, [0, 11, 20]  # the second user is alone with one POI
    for slot in visited:
        past = match.past(sum(content(other) for other in visited if other != slot) / math.sqrt(2))
        group = [other for other in range(24) if other // 8 == slot // 8 and other % 2 == slot % 2]
        scores = torch.stack(
            [past @ match.candidate(content(other)) / math.sqrt(8) + math.log(other + 0.5) for other in group]
        )
        expected -= float(scores.log_softmax(0)[group.index(slot)].detach())
    assert number == 3
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_what_a_group_shares_costs_its_square() -> None:
    """A candidate map that sees what all POIs of a group share: its mean match over the group is added, squared."""
    slots = make_slots()
    learner, groups = learner_of(make_decoder(slots)), SlotGroups(slots)
    history = make_history([[(0, 0), (1, 3)]])
    learner.eval()
    targets, match = learner.decoder.read_targets(history, slots), learner.decoder.interest_match

    plain, _ = interests.match_loss(learner, targets, groups, 64)
    centred, _ = interests.match_loss(learner, targets, groups, 64, centre_weight=3.0)

    def content(slot: int) -> torch.Tensor:
        return match.norm(learner.decoder.trunk.embed_candidates(groups.as_candidates(torch.tensor([slot]))))[
            0, 0
        ]

    expected = 0.0
    for slot, other in ((0, 11), (11, 0)):
        group = [each for each in range(24) if each // 8 == slot // 8 and each % 2 == slot % 2]
        past = match.past(content(other))
        dots = torch.stack([past @ match.candidate(content(each)) / math.sqrt(8) for each in group])
        expected += 3.0 * float(dots.mean().detach()) ** 2
    assert float((centred - plain).detach()) == pytest.approx(expected, rel=1e-3)


def test_popularity_does_not_tell_the_poi_that_is_left_out() -> None:
    """With a blind match four POIs that one user each has visited once are equally likely."""
    slots = make_slots()
    learner, groups = learner_of(make_decoder(slots)), SlotGroups(slots)
    nn.init.zeros_(learner.decoder.interest_match.past.weight)
    history = make_history([[(0, 0), (1, 1)], [(0, 2), (1, 3)], [(0, 4), (1, 5)], [(0, 6), (1, 7)]])
    groups.count_visits(history)

    loss, number = interests.match_loss(learner, learner.decoder.read_targets(history, slots), groups, 64)

    # The other three have one visit each, so the one that is left out is the least likely, never the most.
    assert float(loss.detach()) / number == pytest.approx(math.log(0.5 + 3 * 1.5) - math.log(0.5), rel=1e-5)


def test_pois_of_the_context_are_not_asked_about() -> None:
    slots = make_slots()
    learner, groups = learner_of(make_decoder(slots)), SlotGroups(slots)
    history = make_history([[(0, 0), (1, 3), (0, 0), (2, 4)]])._replace(num_context_B=torch.tensor([2]))
    groups.count_visits(history)

    _, number = interests.match_loss(learner, learner.decoder.read_targets(history, slots), groups, 64)

    assert number == 1  # (2, 4): the second visit to (0, 0) is no first one
    assert groups.visits_N.nonzero()[:, 0].tolist() == [0, 20]


def test_the_user_vector_of_a_target_is_the_one_that_serving_makes() -> None:
    slots = make_slots()
    decoder = make_decoder(slots).eval()
    history = make_history([[(0, 0), (1, 3), (0, 0), (2, 4)]])

    trained = decoder.user_vectors(decoder.read_targets(history, slots))

    for place in range(1, 4):
        past = history._replace(
            lengths_B=torch.tensor([place]),
            **{
                name: field[:, :place]
                for name, field in history._asdict().items()
                if name.endswith(("_BL", "_BL2"))
            },
        )
        request = RequestBatch(
            history.timestamps_BL[:, place], history.tz_offsets_BL[:, place],
            history.user_lonlat_BL2[:, place], history.action_types_BL[:, place], torch.tensor([False]),
        )  # fmt: skip
        assert_close(trained[:, place - 1], decoder.user_state(decoder.encode_prefix(past), request))


def test_new_pois_are_those_without_an_earlier_visit() -> None:
    slots = make_slots()
    history = make_history([[(0, 0), (1, 3), (0, 0), (1, 4)], [(2, 2), (2, 2)]])

    targets = make_decoder(slots).read_targets(history, slots)

    assert interests.mark_new(targets).int().tolist() == [[1, 0, 1], [0, 0, 0]]


def test_a_planted_taste_within_category_and_block_is_learned() -> None:
    """Half of the users go to inner ids 0 and 2, the other half to 4 and 6, of one category, in all blocks."""
    slots = make_slots()
    learner, groups = learner_of(make_decoder(slots)), SlotGroups(slots)
    taste = [
        [(block, inner) for block in range(BLOCKS) for inner in (pair if user % 3 else pair[::-1])]
        for user in range(8)
        for pair in [(0, 2) if user % 2 else (4, 6)]
    ]
    history = make_history(taste)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        targets = learner.decoder.read_targets(history, slots)
        loss, number = interests.match_loss(learner, targets, groups, 64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) / number)

    assert losses[0] > 1.0  # near ln 4: any of the group
    assert losses[-1] < 0.8  # near ln 2: which of the two that one likes, nothing tells


def test_pretraining_with_interests_tells_new_pois_and_resumes_to_the_same_bits(
    city_root: Path, tmp_path: Path
) -> None:
    values = RECIPE.model_dump()
    values["decoder"]["interest_match"]["enabled"] = True
    values["pretrain"] |= {
        "epochs": 5,
        "interests": {"enabled": True, "max_slots": 16, "max_alternatives": 1},
    }
    recipe = Recipe.model_validate(values)

    class PowerCutError(Exception):
        pass

    def die(metrics: dict[str, float], step: int) -> None:
        if step >= 9:
            raise PowerCutError

    def run(folder: Path, log=ignore):
        return run_pretrain(
            tables(city_root), day="2026-03-01", recipe=recipe, layout=None, folder=folder, log=log
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", die)
    resumed = run(tmp_path / "cut")

    assert resumed.is_resumed
    assert resumed.validations == whole.validations
    assert {"val/nats_new", "val/nats_match", "val/loss_towers", "val/loss_next_poi"} <= set(
        whole.validations[0]
    )
    one, other = (load_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one)


def test_a_recipe_without_the_match_or_poi_vectors_cannot_learn_interests() -> None:
    interests_on = {"pretrain": {"interests": {"enabled": True}}}
    with pytest.raises(ValidationError, match="interest_match"):
        Recipe.model_validate(interests_on)
    for other in ({"poi_vectors": "off"}, {"memory": {"enabled": False}}):
        with pytest.raises(ValidationError, match="poi_vectors"):
            Recipe.model_validate({**interests_on, "decoder": {**other, "interest_match": {"enabled": True}}})


def test_overrides_that_need_each_other_may_come_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: small\n")
    needs, needed = "pretrain.interests.enabled=true", "decoder.interest_match.enabled=true"

    for order in ([needs, needed], [needed, needs]):
        assert load_recipe(tmp_path / "recipe.yaml", order).pretrain.interests.enabled
    with pytest.raises(SettingsError, match=r"--set decoder\.num_heads=-3"):
        load_recipe(tmp_path / "recipe.yaml", [needs, needed, "decoder.num_heads=-3"])
    with pytest.raises(SettingsError, match=r"--set pretrain\.interests\.enabled=true"):
        load_recipe(tmp_path / "recipe.yaml", ["name=other", needs])


def test_digests_of_older_trainings_hold_while_the_switches_are_off() -> None:
    assert PretrainConfig().describe() == TrainConfig().describe()
    assert RankingSftConfig().describe() == TrainConfig().describe()
    assert PretrainConfig(interests=InterestConfig(enabled=True)).describe()["interests"]["enabled"]
    assert RankingSftConfig(fit_head=5).describe()["fit_head"] == 5
    assert "criterion" not in TrainConfig().describe()
    assert RankingSftConfig(criterion="misranked").describe()["criterion"] == "misranked"
    assert not {"distinct", "towers"} & set(DecoderConfig().describe()["interest_match"])
    on = DecoderConfig.model_validate({"interest_match": {"enabled": True, "towers": True}}).describe()
    assert on["interest_match"]["towers"]
    assert "distinct" not in on["interest_match"]
