"""What users did in the training period: by hand, beside the NumPy twin that public protocols use, and as a job."""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from conf.settings import load_settings
from etl.delta.digests import digest_tables
from etl.delta.storage import read_table, replace_day, table_exists, table_version
from etl.jobs import samples
from etl.jobs.runner import JobRun
from etl.tables.training_transitions import build_training_transitions
from etl.tables.training_visits import build_training_visits
from models.copying.crowd_statistics import count_others
from models.copying.crowd_tables import CrowdAt, read_crowd
from models.data.catalogue import Catalogue
from models.data.dataset import TableAt
from tests.etl.contexts import context_of
from tests.rows import DAY, HOUR_MS, NOON_MS, cleaned, frame_of

DAY_MS = 24 * HOUR_MS
NAMES = ("training_visits", "training_transitions")
NUM_POIS = 12


def acted(user: str, number: int, poi: int, hours: float, **fields: object) -> dict[str, object]:
    """An action `hours` after noon of the day 20 days ago, local time an hour later; POIs lie three to a block."""
    good = {
        "action_id": f"{user}{number:03}",
        "user_id": user,
        "poi_id": f"p{poi}",
        "action_ts_ms": NOON_MS - 20 * DAY_MS + int(hours * HOUR_MS),
        "event_date": DAY - timedelta(days=20 - int(12 + hours) // 24),
        "tz_offset_min": 60,
        "block_id": poi // 3,
        "inner_id": poi % 3,
    }
    return cleaned(**{**good, **fields})


# Ann: 0 -> 1 -> 2 -> 0 an hour apart, where 1 is an errand. Bob: 0 -> 1, 2 a day and an hour after that.
ANN = [acted("ann", n, poi, n, is_interest=poi != 1) for n, poi in enumerate((0, 1, 2, 0))]
BOB = [acted("bob", n, poi, hours) for n, (poi, hours) in enumerate(((0, 0), (1, 1), (2, 26)))]


def build(spark, rows: Sequence[dict[str, object]], *, interest_only: bool = True):
    target = "is_interest" if interest_only else "true"
    actions = frame_of(spark, "cleaned_actions", rows).selectExpr("*", f"{target} AS is_target")
    visits = build_training_visits(actions, index_version=1)
    transitions = build_training_transitions(actions, index_version=1)
    return visits.collect(), transitions.collect()


def poi_of(row, prefix: str = "") -> int:
    return row[f"{prefix}block_id"] * 3 + row[f"{prefix}inner_id"]


def test_visits_count_targets_by_local_hour(spark):
    visits, _ = build(spark, ANN + BOB)

    found = {(row["user_id"], poi_of(row), row["local_hour"]): row["visits"] for row in visits}
    assert found == {
        ("ann", 0, 13): 1,  # noon UTC on a clock an hour ahead
        ("ann", 2, 15): 1,
        ("ann", 0, 16): 1,
        ("bob", 0, 13): 1,
        ("bob", 1, 14): 1,
        ("bob", 2, 15): 1,
    }


def test_transitions_lead_from_anything_to_targets_within_hours(spark):
    _, transitions = build(spark, ANN + BOB)

    found = {(row["user_id"], poi_of(row), poi_of(row, "next_")): row["weight"] for row in transitions}
    assert found == {
        ("ann", 0, 2): 0.5,  # over the errand between; the errand itself is nothing to go to
        ("ann", 1, 2): 1.0,  # but where she came from
        ("ann", 1, 0): 0.5,
        ("ann", 2, 0): 1.0,  # 0 -> 0 over three steps is no transition
        ("bob", 0, 1): 1.0,  # 25 hours later is too late
    }


def test_weights_and_visits_add_up_and_what_is_partly_simulated_is_simulated(spark):
    twice = [acted("ann", n, n % 2, 2 * DAY_MS / HOUR_MS * (n // 2) + n % 2) for n in range(4)]
    twice[3]["is_simulated"] = True

    visits, transitions = build(spark, twice)

    assert {(poi_of(row), row["visits"], row["is_simulated"]) for row in visits} == {
        (0, 2, False),
        (1, 2, True),
    }
    assert [(poi_of(row), row["weight"], row["is_simulated"]) for row in transitions] == [(0, 2.0, True)]


def some_actions(seed: int) -> list[dict[str, object]]:
    """Many actions of few users at few POIs, often at equal times, in no order."""
    rng = np.random.default_rng(seed)
    rows = [
        acted(f"u{rng.integers(7)}", n, int(rng.integers(NUM_POIS)), int(rng.integers(0, 9 * 24)))
        for n in range(250)
    ]
    return [row | {"tz_offset_min": int(rng.choice([-300, 0, 330]))} for row in rows]


def catalogue_of_pois() -> Catalogue:
    count = np.arange(NUM_POIS)
    columns = {"poi_id": [f"p{n}" for n in count], "block_id": count // 3, "inner_id": count % 3}
    places = {"poi_lon": count * 0.1, "poi_lat": count * 0.1, "category_id": count * 0}
    since = pa.array([DAY - timedelta(days=99)] * NUM_POIS)
    life = {"valid_from": since, "valid_to": pa.nulls(NUM_POIS, pa.date32())}
    return Catalogue.from_arrow(pa.table({**columns, **places, **life}))


def count_by_twin(rows: Sequence[dict[str, object]]):
    rows = sorted(rows, key=lambda row: (row["user_id"], row["action_ts_ms"], row["action_id"]))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    pois = columns["block_id"] * 3 + columns["inner_id"]
    return count_others(
        columns["user_id"], pois, columns["action_ts_ms"], columns["tz_offset_min"], num_pois=NUM_POIS
    )


def test_the_tables_say_what_the_twin_counts(spark, settings):
    """The oracle: `models.copying.crowd_statistics.count_others`, plain NumPy over the rows in order."""
    rows, root = some_actions(0), settings.storage.root
    actions = frame_of(spark, "cleaned_actions", rows).selectExpr("*", "true AS is_target")
    frames = {
        "training_visits": build_training_visits(actions, index_version=1),
        "training_transitions": build_training_transitions(actions, index_version=1),
    }
    for name, frame in frames.items():
        replace_day(frame, name, root, day=DAY, run_id="test", job="test")

    others = CrowdAt(*(TableAt(f"{root}/{name}") for name in NAMES), DAY.isoformat(), 1)
    found, expected = read_crowd(others, catalogue_of_pois()), count_by_twin(rows)

    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def write_actions(spark, settings, rows) -> None:
    frame = frame_of(spark, "cleaned_actions", rows)
    replace_day(frame, "cleaned_actions", settings.storage.root, day=DAY, run_id="test", job="test")


def run(spark, settings, *overrides: str):
    storage = (f"storage.root={settings.storage.root}", f"storage.artifacts={settings.storage.artifacts}")
    own = load_settings(overrides=(*storage, "samples.val_days=1", "samples.test_days=1", *overrides))
    return samples.count_others(context_of(own, "training_others"), spark)


LATER = [
    acted("ann", 90, 5, 0, action_ts_ms=NOON_MS - DAY_MS, event_date=DAY - timedelta(days=1)),
    acted("ann", 91, 6, 0, action_ts_ms=NOON_MS, event_date=DAY),
]


def test_the_job_counts_the_training_period_alone_and_a_rerun_changes_nothing(spark, settings):
    write_actions(spark, settings, ANN + BOB + LATER)
    root = settings.storage.root

    summary = run(spark, settings)
    digests = digest_tables(spark, root, list(NAMES), day=DAY)
    run(spark, settings)

    assert digest_tables(spark, root, list(NAMES), day=DAY) == digests
    assert (summary.rows_in, summary.rows_out, summary.rows_dropped) == (7, 6, 1)
    assert summary.notes["users"] == 2
    visited = {poi_of(row) for row in read_table(spark, root, "training_visits").collect()}
    assert visited == {0, 1, 2}  # nothing of the validation day and of the test day
    reached = read_table(spark, root, "training_transitions").where("user_id = 'ann'").collect()
    assert {poi_of(row, "next_") for row in reached} == {0, 2}


def test_a_run_that_was_killed_between_the_tables_is_made_good_by_the_next(spark, settings, monkeypatch):
    write_actions(spark, settings, ANN + BOB)
    replace = JobRun.replace

    def die_before_the_visits(run, frame, name, **options):
        if name == "training_visits":
            raise KeyboardInterrupt
        replace(run, frame, name, **options)

    monkeypatch.setattr(JobRun, "replace", die_before_the_visits)
    with pytest.raises(KeyboardInterrupt):
        run(spark, settings)
    assert not table_exists(
        spark, settings.storage.root, "training_visits"
    )  # nobody finds a day that is not whole
    monkeypatch.undo()

    run(spark, settings)

    for name in NAMES:
        assert not read_table(spark, settings.storage.root, name).isEmpty()


def test_errands_count_where_they_are_targets(spark, settings):
    write_actions(spark, settings, ANN)

    summary = run(spark, settings, "samples.interest_only=false")

    assert (summary.rows_in, summary.rows_out, summary.rows_dropped) == (4, 4, 0)


def test_actions_of_another_index_version_do_not_count(spark, settings):
    write_actions(spark, settings, [*ANN, acted("bob", 0, 3, 0, index_version=2)])

    assert run(spark, settings).rows_in == 4


def test_a_dry_run_writes_nothing(spark, settings):
    write_actions(spark, settings, ANN)
    context = context_of(settings, "training_others", dry_run=True)

    summary = samples.count_others(context, spark)

    assert summary.rows_in == 4
    assert not summary.tables


def test_a_period_without_actions_leaves_empty_tables(spark, settings):
    write_actions(spark, settings, LATER)

    summary = run(spark, settings)

    assert (summary.rows_in, summary.rows_out) == (0, 0)
    for name in NAMES:
        assert table_version(spark, settings.storage.root, name) >= 0
        assert read_table(spark, settings.storage.root, name).isEmpty()
