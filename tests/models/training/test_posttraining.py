"""Post-training stages on the planted city: what they learn, and what must hold at their start."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.config import AlignConfig, EmbeddingSftConfig, Recipe, TrainConfig
from models.data.dataset import TableAt
from models.data.slots import LiveSlots
from models.evaluation.metrics import auc
from models.network.checkpoint import save_stage
from models.training import sft_ranking
from models.training.align_dpo import AlignStage, pair_log_probs
from models.training.losses import preference_loss
from models.training.posttraining import (
    NO_LABEL,
    SFT_COLUMNS,
    SampleSource,
    SftRun,
    Splits,
    flatten_by_label,
)
from models.training.sft_embedding import EmbeddingStage, TwoTowers, embed_rows
from models.training.sft_ranking import (
    RankingStage,
    read_rows,
    run_sft_ranking,
    score_rows,
    start_click_head,
)
from models.training.stage import TrainResult
from models.training.trainer import train


def _splits(city_root, config: TrainConfig, tmp_path) -> Splits:
    table = TableAt(str(city_root / "ranking_samples"))
    return Splits(SampleSource(table, "2026-03-01", "request_id", SFT_COLUMNS), config, tmp_path / "scratch")


def test_ranking_stage_learns_whose_favourite_is_clicked(make_decoder, city_root, tmp_path):
    config = TrainConfig(epochs=8, batch_size=8, warmup_steps=2, learning_rate=1e-2, patience=20)
    stage = RankingStage(_splits(city_root, config, tmp_path))
    model = make_decoder(dropout=0.0, embedding_dropout=0.0)
    result = train(stage, model, config, tmp_path, lambda metrics, step: None)
    assert result.validations[-1]["val/auc"] > 0.9
    assert result.best_value < result.validations[0]["val/loss"]


def test_a_fitted_head_ranks_by_evidence_alone_and_training_does_not_end_below_it(
    make_decoder, city_root, tmp_path
):
    config = TrainConfig(max_steps=2, batch_size=8, learning_rate=0.5, patience=20, validate_start=True)
    splits = _splits(city_root, config, tmp_path)
    model = make_decoder(interest_match={"enabled": True, "dropout": 0.0}, dropout=0.0, embedding_dropout=0.0)

    num_read = start_click_head(model, splits.train.read(0, 0), 10)

    rows = next(splits.train.read(0, 0))
    states, labels = read_rows(model.eval(), rows)
    logits = model.click_logits(states)
    is_real = labels != NO_LABEL
    weights = torch.cat([model.click.memory.weight, model.click.evidence.weight], dim=1)[0]
    assert num_read == 10
    assert not model.click.state.weight.any()
    torch.testing.assert_close(logits, model.click.features(states) @ weights + model.click.state.bias)
    # Favourites are clicked, and the memory's shares tell them.
    assert auc(logits[is_real].detach().numpy(), labels[is_real].numpy()) > 0.75

    result = train(RankingStage(splits), model.train(), config, tmp_path, lambda metrics, step: None)
    assert result.best_value <= result.validations[0]["val/loss"]


def test_a_head_is_not_fitted_to_labels_of_one_kind(make_decoder, city_tables):
    model = make_decoder()
    before = model.click.state.weight.clone()
    rows = city_tables["ranking_samples"].slice(0, 2)
    column = rows.schema.get_field_index("labels")
    rows = rows.set_column(
        column,
        rows.schema.field(column),
        pa.array([[0] * len(r) for r in rows["labels"].to_pylist()], rows.schema.field(column).type),
    )

    assert start_click_head(model, [rows], 2) == 0
    assert torch.equal(model.click.state.weight, before)


def test_the_stage_starts_from_the_fitted_head_and_a_resume_from_its_checkpoint(
    make_decoder, city_root, tmp_path, monkeypatch
):
    model = make_decoder(interest_match={"enabled": True, "dropout": 0.0, "towers": True})
    save_stage(tmp_path / "pretrained" / "model", model, {})
    still = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "weight_decay": 0.0, "checkpoint_every": 1}
    recipe = Recipe(
        sft_ranking={**still, "fit_head": 10, "batch_size": 8, "micro_batch_size": 4, "max_steps": 1}
    )
    samples = TableAt(str(city_root / "ranking_samples"), 0)

    def run() -> TrainResult:
        return run_sft_ranking(
            SftRun(
                samples,
                day="2026-03-01",
                recipe=recipe,
                pretrained=tmp_path / "pretrained",
                folder=tmp_path / "ranking",
                log=lambda metrics, step: None,
            )
        )

    splits = _splits(city_root, recipe.sft_ranking, tmp_path)
    start_click_head(model, splits.train.read(0, 0), 10)
    with torch.no_grad():
        expected = RankingStage(splits).validate(model.eval())["val/loss"]

    first = run()
    monkeypatch.setattr(
        sft_ranking, "fit_click_head", lambda *_: pytest.fail("a resume fitted the head again")
    )
    again = run()

    assert first.validations[0]["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert first.validations[0]["val/loss"] < 0.65
    assert again.best_value == first.best_value


def test_embedding_stage_learns_and_its_temperature_moves(make_decoder, city_root, tmp_path):
    config = EmbeddingSftConfig(epochs=8, batch_size=8, warmup_steps=2, learning_rate=1e-2, patience=20)
    stage = EmbeddingStage(_splits(city_root, config, tmp_path), config)
    towers = TwoTowers(make_decoder(dropout=0.0, embedding_dropout=0.0), temperature=0.07)
    result = train(stage, towers, config, tmp_path, lambda metrics, step: None)
    assert result.validations[-1]["val/auc"] > 0.8
    assert float(towers.temperature.detach()) != pytest.approx(0.07, rel=1e-4)


def test_dropping_every_request_gives_the_neutral_vector(make_decoder, requests_batch):
    model, rows = make_decoder(), pa.Table.from_batches([requests_batch])
    dropped = embed_rows(model, rows, drop_request=1.0)[0]
    later = rows.set_column(
        rows.schema.get_field_index("request_ts_ms"), "request_ts_ms",
        pa.array(rows["request_ts_ms"].to_numpy() + 3_600_000),
    )  # fmt: skip
    torch.testing.assert_close(embed_rows(model, later, drop_request=1.0)[0], dropped)
    assert not torch.allclose(embed_rows(model, rows)[0], dropped)


def test_scores_of_training_rows_do_not_see_the_labels_or_positions(make_decoder, requests_batch):
    model, rows = make_decoder(), pa.Table.from_batches([requests_batch])
    logits, _ = score_rows(model, rows)
    flipped = [[1 - label for label in own] for own in rows["labels"].to_pylist()]
    changed = rows.set_column(
        rows.schema.get_field_index("labels"), "labels", pa.array(flipped, pa.list_(pa.int32()))
    )
    again, labels = score_rows(model, changed)
    torch.testing.assert_close(again, logits)
    assert (labels == NO_LABEL).sum() == logits.numel() - sum(len(own) for own in flipped)


@pytest.mark.parametrize("kind", ["dpo", "s-dpo", "ipo"])
def test_policy_and_reference_start_equal_so_the_first_loss_is_known(make_decoder, city_tables, kind):
    rows = city_tables["preference_pairs"].slice(0, 8)
    model = make_decoder()
    log_probs, is_rejected = pair_log_probs(model, rows, None)
    beta = AlignConfig().beta
    found = preference_loss(log_probs, log_probs, is_rejected, beta=beta, kind=kind)
    sizes = np.array([len(own) for own in rows["rejected_poi_ids"].to_pylist()])
    expected = {
        "dpo": len(sizes) * np.log(2),
        "s-dpo": np.log(1 + sizes).sum(),
        "ipo": len(sizes) / (2 * beta) ** 2,
    }[kind]
    assert found.num_pairs == 8
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_weight_on_chosen_pois_adds_their_cross_entropy(make_decoder, city_tables):
    rows = city_tables["preference_pairs"].slice(0, 8)
    model, reference = make_decoder(), make_decoder()
    num_blocks, max_inner = model.config.num_blocks, model.config.max_inner
    blocks, inners = torch.cartesian_prod(torch.arange(num_blocks), torch.arange(max_inner)).T
    slots = LiveSlots(blocks, inners, num_blocks=num_blocks, max_inner=max_inner)
    losses = [
        AlignStage(None, AlignConfig(chosen_weight=weight), reference, slots).loss(model, rows)[0]
        for weight in (0.0, 0.5)
    ]

    chosen = pair_log_probs(model.eval(), rows, slots)[0].chosen_B

    torch.testing.assert_close(losses[1] - losses[0], -0.5 * chosen[chosen.isfinite()].sum())


def test_gradients_of_alignment_are_finite_for_users_without_history(make_decoder, city_tables):
    rows, model = city_tables["preference_pairs"].slice(0, 4), make_decoder()
    assert rows["seq_len"][0].as_py() == 0
    policy, is_rejected = pair_log_probs(model, rows, None)
    reference = type(policy)(*(part.detach() for part in policy))
    preference_loss(policy, reference, is_rejected, beta=0.1, kind="dpo").loss.backward()
    assert all(
        parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None
    )


def test_flattening_leaves_the_padding_out():
    scores, labels, users = flatten_by_label(
        [(np.array([[0.1, 0.2], [0.3, 9.0]]), np.array([[1, 0], [1, NO_LABEL]]), ["a", "b"])]
    )
    assert scores.tolist() == [0.1, 0.2, 0.3]
    assert labels.tolist() == [1, 0, 1]
    assert users.tolist() == ["a", "a", "b"]
