"""The release report on a tiny warehouse: its numbers, its notes where inputs are missing, and that it is
safe to open."""

import json
import re
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from conf.errors import NoReleaseError, ReleaseWithdrawnError
from conf.files import write_json
from conf.releases import find_release_of_day, load_releases
from models.evaluation.figures import without_nan
from models.lift.measure import cut_by_time, measure_lift
from models.lift.show import LIFT_FILE
from models.report.data import ReleaseTables, sample_keys
from models.report.drift import compute_overlap, compute_psi
from models.report.features import mean_cosine
from models.report.funnel import count_funnels, count_repeats
from tests.models.lift.planted import CONFIG, make_impressions
from tests.models.report_city import (
    DAY,
    build_warehouse,
    publish,
    raw_action,
    refuse,
    report_of,
    settings_of,
    text_of,
    write,
    write_evaluation,
    write_vectors,
)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    build_warehouse(folder / "warehouse")
    return settings_of(folder)


@pytest.fixture(scope="module")
def page(city):
    return report_of(city)[1]


def test_funnel_adds_up_on_the_day_and_up_to_it(city):
    release = find_release_of_day(load_releases(city.storage.root), city.storage.root, DAY)

    today, until = count_funnels(ReleaseTables(city.storage.root, release))

    assert (today.delivered, today.accepted, today.duplicates) == (63, 60, 1)
    assert today.refused == {"missing_poi": 1, "time_in_seconds": 1}
    assert (until.delivered, until.accepted, until.num_refused, until.duplicates) == (126, 120, 4, 2)
    assert today.unexplained == until.unexplained == 0


def test_a_row_that_vanished_is_shown_as_unexplained(tmp_path):
    settings = settings_of(tmp_path)
    root = settings.storage.root
    write(root, "raw_actions", [raw_action("a1"), raw_action("a2")])
    write(root, "cleaned_actions", [{"day": DAY, "action_id": "a1", "user_id": "u0"}])  # a2 is nowhere
    write(root, "releases", [publish(root, 1)])

    _, html = report_of(settings)

    assert "unexplained 1 1 up to the day" in text_of(html, "funnel")


def test_a_refused_row_without_id_and_with_nan_is_matched_with_its_delivery(tmp_path):
    root = str(tmp_path)
    bad = raw_action(None, user_lon=float("nan"))
    good = raw_action(None, user_lon=4.9)
    refused = refuse(bad, "missing_poi")
    refused["payload"] = refused["payload"].replace("NaN", '"NaN"')  # as Spark writes it
    write(root, "raw_actions", [bad, good, good])
    write(root, "quarantined_rows", [refused])
    write(root, "cleaned_actions", [{"day": DAY, "action_id": "made-up", "user_id": "u0"}])
    write(root, "releases", [publish(root, 1)])

    today, _ = count_funnels(ReleaseTables(root, find_release_of_day(load_releases(root), root, DAY)))

    assert (today.delivered, today.accepted, today.num_refused, today.duplicates) == (3, 1, 1, 1)


def test_redelivered_and_twice_refused_rows_are_told_apart():
    delivered = np.array([1, 1, 1, 2, 2, 3], dtype=np.uint64)

    assert count_repeats(delivered, np.array([], dtype=np.uint64)) == 3
    assert (
        count_repeats(delivered, np.array([2, 2], dtype=np.uint64)) == 2
    )  # both 2s were refused, no copy was dropped
    assert count_repeats(delivered, np.array([2], dtype=np.uint64)) == 2  # refused once, accepted once


def test_sections_come_in_order_with_what_would_be_alarming(page):
    keys = re.findall(r'<section id="(\w+)">', page)

    assert keys == [
        "lift",
        "funnel",
        "map",
        "sequences",
        "training",
        "accuracy",
        "calibration",
        "embeddings",
        "drift",
        "lineage",
    ]
    assert page.count("<b>Alarming:</b>") == len(keys)


def test_the_page_begins_with_what_the_features_are_worth(tmp_path):
    settings = settings_of(tmp_path)
    write(settings.storage.root, "releases", [publish(settings.storage.root, 1)])
    features, rows, times, logit = make_impressions(by_vectors=0.6, by_logit=0.8)
    cut = cut_by_time(times, rows.requests)
    figures = measure_lift(features, rows, cut, [CONFIG], oracle=logit, hours=times / 3_600_000).figures
    folder = Path(settings.storage.artifacts) / "training" / str(DAY)
    write_json(folder / LIFT_FILE, without_nan({**figures, "is_simulated": True}))

    text = text_of(report_of(settings)[1], "lift")

    lift, low, high = (100 * figures["differences"]["both"]["auc"][end] for end in ("value", "low", "high"))
    assert f"lift of AUC, points {lift:+.2f} 95 % ({low:+.2f} to {high:+.2f})" in text
    assert f"without {figures['sets']['base']['auc']:.4f}" in text
    assert "These clicks are simulated" in text
    assert "Where the lift comes from" in text
    assert text.index("+ embeddings") < text.index("+ both")  # in the order of the paper, not of the alphabet
    assert "click_logit" in text
    write_json(folder / LIFT_FILE, {"missing": "the held-out requests lie on 2 days"})
    assert "the held-out requests lie on 2 days" in text_of(report_of(settings)[1], "lift")


def test_headline_names_release_model_index_and_simulation(page):
    band = re.search(r"<header.*?</header>", page, re.DOTALL)[0]

    for text in ("Release 2", "2026-03-02", "spacetime-gr/1", "SIMULATED", "Actions are real"):
        assert text in band


def test_counts_of_pois_users_and_scores_are_in_the_page(page):
    assert "live POIs 40" in text_of(page, "map")
    assert "users 30 30 active on the day" in text_of(page, "sequences")
    assert "scored candidates 105 15 requests" in text_of(
        page, "calibration"
    )  # 15 requests with 7 candidates
    assert "of 105 labelled candidates" in text_of(page, "calibration")


def test_page_refers_to_nothing_outside_itself(page):
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert "<script" not in page


def test_hostile_names_are_text(page):
    assert "&lt;script&gt;alert(" in page
    assert "Caf\u00e9 &amp; $\\frac{1}{0}$" in page


def test_same_inputs_give_the_same_bytes(city, page):
    assert report_of(city)[1] == page


def test_missing_inputs_leave_a_note_in_their_section(tmp_path):
    settings = settings_of(tmp_path)
    write(
        settings.storage.root, "releases", [publish(settings.storage.root, 1)]
    )  # a release and nothing else

    summary, html = report_of(settings)

    assert summary.notes["empty_sections"] == [
        "lift",
        "funnel",
        "map",
        "sequences",
        "training",
        "accuracy",
        "calibration",
        "embeddings",
        "drift",
    ]
    assert "Table raw_actions has not been written." in text_of(html, "funnel")
    assert "first release" in text_of(html, "drift")
    assert "no audit record" in text_of(html, "lineage")


def test_scores_without_known_clicks_are_drawn_with_a_note(tmp_path):
    settings = settings_of(tmp_path)
    root = settings.storage.root
    write(root, "ranking_scores", [{"day": DAY, "request_id": "r1", "poi_id": "p1", "score": 0.5}])
    write(root, "releases", [publish(root, 1)])

    section = text_of(report_of(settings)[1], "calibration")

    assert "No impressions are known (yet)" in section
    assert "scored candidates 1" in section


def test_a_day_without_release_is_an_error_that_names_the_releases(city):
    with pytest.raises(
        NoReleaseError, match=r"a release of 2026-05-01 was not found .* Releases there: 1, 2"
    ):
        report_of(city, day=date(2026, 5, 1))


def test_an_older_release_is_reported_at_its_own_versions(city):
    _, html = report_of(city, release=1)

    assert "delivered 63" in text_of(html, "funnel")
    assert "first release" in text_of(html, "drift")


def test_accuracy_prints_model_and_baselines_with_protocol_and_digest(tmp_path):
    settings = settings_of(tmp_path)
    write(settings.storage.root, "releases", [publish(settings.storage.root, 1)])
    write_evaluation(settings.storage.artifacts)

    section = text_of(report_of(settings)[1], "accuracy")

    assert "release-split, test, 1,234 rows, 56 users, digest of the row ids 0123456789abcdef" in section
    assert "all rows pre-trained 1,234 0.4500" in section
    assert "all rows recency-weighted visits 1,234 0.3700" in section
    assert "discoveries popularity 234" in section
    assert "best baseline 0.6100 (distance)" in section
    assert "+0.0800 +0.0100 +0.1500" in section
    assert "These rows are simulated" in section


def test_accuracy_shows_what_a_shift_towards_new_places_costs(tmp_path):
    settings = settings_of(tmp_path)
    write(settings.storage.root, "releases", [publish(settings.storage.root, 1)])
    write_evaluation(settings.storage.artifacts)

    section = text_of(report_of(settings)[1], "accuracy")

    assert "0 0.7800 0.9000 0.0500" in section
    assert "1 0.7700 - 0.0900" in section
    assert "P(new): AUC 0.8765" in section
    assert "Acc@10 of 234 new POIs among new ones 0.1543" in section
    assert "the same by nearness x popularity, without training 0.1234" in section


def test_broken_evaluation_is_a_note(tmp_path):
    settings = settings_of(tmp_path)
    write(settings.storage.root, "releases", [publish(settings.storage.root, 1)])
    write_evaluation(settings.storage.artifacts)
    (Path(settings.storage.artifacts) / "training" / str(DAY) / "evaluation.json").write_text("{")

    assert "is not JSON" in text_of(report_of(settings)[1], "accuracy")


def test_drift_compares_vectors_of_one_model_only(city, page, tmp_path):
    assert "neighbour overlap, POI 1.0000" in text_of(page, "drift")
    assert "mean cosine, same POI 1.0000 40 in both" in text_of(
        page, "drift"
    )  # planted: POI vectors did not change

    settings = settings_of(tmp_path)
    root = settings.storage.root
    for release_id, model in ((1, "spacetime-gr/1"), (2, "spacetime-gr/2")):
        write_vectors(root, "poi_embeddings", "poi_id", "p", 3, day=DAY, model=model, seed=release_id)
        write(root, "releases", [publish(root, release_id, model=model)])
    section = text_of(report_of(settings)[1], "drift")
    assert "The model changed from spacetime-gr/1 to spacetime-gr/2" in section
    assert "mean cosine, same" not in section


def test_stability_index_is_zero_for_equal_and_large_for_moved_scores():
    scores = np.linspace(0.0, 1.0, 1001)

    assert compute_psi(scores, scores) == 0.0
    assert compute_psi(scores, np.clip(scores + 0.5, 0, 1)) > 0.25


def test_neighbour_overlap_counts_the_nearest_rows_that_stayed():
    angles = np.radians([0.0, 10.0, 90.0, 100.0])
    moved = np.radians([0.0, 10.0, 90.0, -20.0])  # the last one leaves its neighbour for the first row
    then, now = (np.column_stack([np.cos(own), np.sin(own)]) for own in (angles, moved))

    assert compute_overlap(then, then, 1) == 1.0
    assert compute_overlap(now, then, 1) == 0.5  # of the last two rows the nearest is another one
    assert compute_overlap(then[:1], then[:1]) == 1.0  # nobody to be near to


def test_mean_cosine_leaves_out_a_vector_with_itself():
    assert mean_cosine(np.array([[1.0, 0.0], [0.0, 1.0]])) == 0.0
    assert mean_cosine(np.array([[1.0, 0.0], [1.0, 0.0]])) == 1.0


def test_samples_do_not_depend_on_the_order_of_the_keys():
    keys = np.array([f"p{i}" for i in range(100)], dtype=object)

    assert sample_keys(keys, 10).tolist() == sample_keys(keys[::-1], 10).tolist()
    assert len(sample_keys(keys, 10)) == 10


def test_audit_of_the_day_and_its_data_docs_are_shown(tmp_path):
    settings = settings_of(tmp_path)
    artifacts = Path(settings.storage.artifacts)
    write(settings.storage.root, "releases", [publish(settings.storage.root, 1)])
    (artifacts / "audits").mkdir(parents=True)
    (artifacts / "data_docs").mkdir()
    (artifacts / "data_docs" / "index.html").touch()
    checks = [{"table": "poi_embeddings", "name": "live POIs without a vector", "found": 0}]
    audit = {"is_passed": True, "checks": checks, "failures": [], "docs": str(artifacts / "data_docs")}
    (artifacts / "audits" / f"{DAY}.json").write_text(json.dumps(audit))

    html = report_of(settings)[1]

    assert "audit passed 1 checks across tables" in text_of(html, "lineage")
    assert "live POIs without a vector 0" in text_of(html, "lineage")
    assert 'href="../data_docs/index.html"' in html


@pytest.mark.operations("11")
@pytest.mark.parametrize("damage", ["file gone", "newest log entry cut"])
def test_what_cannot_be_read_empties_its_section_and_no_other(tmp_path, damage):
    settings = settings_of(tmp_path)
    root = Path(settings.storage.root)
    build_warehouse(str(root))
    before, whole = report_of(settings)
    if damage == "file gone":
        for file in (root / "user_embeddings").glob("*.parquet"):
            file.unlink()
    else:  # of a version after the release, which it does not show
        write(str(root), "user_embeddings", [{"day": DAY, "user_id": "later"}])
        log = sorted((root / "user_embeddings" / "_delta_log").glob("*.json"))[-1]
        log.write_bytes(log.read_bytes()[:40])

    summary, html = report_of(settings)

    assert text_of(html, "funnel") == text_of(whole, "funnel")
    if damage == "file gone":
        assert "embeddings" in summary.notes["empty_sections"]
        assert "can no longer be read" in text_of(html, "embeddings")
    else:
        assert summary.notes["empty_sections"] == before.notes["empty_sections"]


@pytest.mark.operations("12")
def test_a_withdrawn_release_keeps_the_page_that_it_had(tmp_path):
    settings = settings_of(tmp_path)
    build_warehouse(settings.storage.root)
    summary, _ = report_of(settings)
    page = Path(summary.notes["report"])
    before = page.read_bytes()
    number = summary.notes["release_id"]
    write(settings.storage.root, "withdrawals", [{"release_id": number, "reason": "users were erased"}])

    with pytest.raises(ReleaseWithdrawnError, match="users were erased"):
        report_of(settings, release=number)

    assert page.read_bytes() == before
    assert [path.name for path in page.parent.iterdir()] == [page.name]
