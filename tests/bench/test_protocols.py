"""The figures of a protocol as the bench puts them into the ledger."""

from conf.results import load
from models.protocols.run import evaluate_protocol
from tests.bench.protocols import record_protocol
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
    assert acc1.bar == ">= 0.399"
    kernel = figures["methods"]["kernel_counter"]["all"]["mrr"]
    assert mrr.bar == f">= {kernel:.4f}"
    assert f"recency-weighted visit baseline {kernel:.4f}" in mrr.notes
    assert "mean of seeds 0 " in mrr.notes
    assert "95 % by users" in mrr.notes
