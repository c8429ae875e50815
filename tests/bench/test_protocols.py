"""The figures of a protocol as the bench puts them into the ledger."""

from conf.results import load
from models.protocols.run import evaluate_protocol
from tests.bench.protocols import choose_logit, record_new_places, record_protocol
from tests.models.protocols.tiny_checkins import RECIPE, write_checkins


def test_figures_of_a_protocol_go_into_the_ledger_with_their_baselines(tmp_path):
    figures = evaluate_protocol("calgary", write_checkins(tmp_path), recipe=RECIPE, seeds=(0,), work=tmp_path)

    record_protocol("nyc-table6-all", figures, str(tmp_path / "results"))

    results, problems = load(tmp_path / "results")
    assert problems == []
    assert [result.name for result in results] == [  # there is no discovery to tell of
        "nyc-table6-all-acc1", "nyc-table6-all-acc10", "nyc-table6-all-mrr",
    ]  # fmt: skip
    acc1, _, mrr = results
    assert acc1.bar == ">= 0.4"
    kernel = figures["methods"]["kernel_counter"]["all"]["mrr"]
    assert mrr.bar == f">= {kernel:.4f}"
    assert f"recency-weighted visit baseline {kernel:.4f}" in mrr.notes
    assert "mean of seeds 0 " in mrr.notes
    assert "95 % by users" in mrr.notes


def test_the_shift_is_chosen_on_validation_rows_and_reported_on_the_others(tmp_path):
    figures = evaluate_protocol("calgary", write_checkins(tmp_path), recipe=RECIPE, seeds=(0,), work=tmp_path)
    record_new_places("nyc-table6-all", figures, figures, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()  # no check-in of this folder is at a POI that is new to its user
    own, curve = figures["new_places"], figures["new_places"]["curve"]
    own["among_new"] |= {"rows": 9, "hr_at_10": {"value": 0.3}, "baselines": {}}
    own |= {"p_new_auc": 0.9}
    for place, point in enumerate(curve):
        point["all"], point["new"] = 0.5, place / 10
    validation = {
        "new_places": {"curve": [{**point, "all": 0.1 * (place == 2)} for place, point in enumerate(curve)]}
    }

    record_new_places("nyc-table6-all", figures, validation, str(tmp_path / "results"))

    values = {result.name: result for result in load(tmp_path / "results")[0]}
    assert values["nyc-discoveries-acc10"].value == 0.2
    assert f"logit {curve[2]['new_logit']:g}," in values["nyc-discoveries-acc10"].notes
    assert values["nyc-discoveries-all-acc10"].bar == ">= 0.78"


def test_of_equally_good_shifts_the_largest_is_chosen():
    curve = [{"all": 0.5, "new_logit": 0.0}, {"all": 0.5, "new_logit": 1.0}, {"all": 0.4, "new_logit": 2.0}]
    assert choose_logit(curve) == 1.0
