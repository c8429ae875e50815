"""Public protocols: the rows they make of a tiny check-in folder, and of the real one where it is there."""

from pathlib import Path

import pandas as pd
import pytest

from conf.errors import CorruptInputError, MissingInputError
from models.evaluation.baselines import count_training, score_kernel, score_popularity, score_visits
from models.evaluation.metrics import digest_rows, exact_mean, hit_values, rank_targets, reciprocal_values
from models.protocols.splits import PROTOCOLS, build_rows
from tests.checkin_data import DATA, needs_data


def _folder(tmp_path: Path, rows: list[tuple[str, str, int]]) -> Path:
    """Writes check-ins given as (user, POI, hour)."""
    frame = pd.DataFrame(rows, columns=["user_id", "poi_id", "hour"])
    frame["utc_time"] = pd.Timestamp("2012-06-01", tz="UTC") + pd.to_timedelta(frame.pop("hour"), unit="h")
    frame.assign(tz_offset_min=-240).to_parquet(tmp_path / "checkins.parquet")
    return tmp_path


def test_rows_are_split_by_time_and_scored_targets_are_known_from_training(tmp_path):
    rows = [
        ("u1", "p1", 0),
        ("u1", "p2", 1),
        ("u1", "p1", 2),
        ("u1", "p2", 3),
        ("u1", "p1", 4),
        ("u1", "p2", 5),
        ("u1", "p1", 6),
        ("u1", "p2", 7),
        ("u1", "p1", 8),
        ("u1", "p2", 9),
    ]
    built = build_rows(PROTOCOLS["calgary"], _folder(tmp_path, rows))
    assert built.num_rows == {"train": 8, "val": 1, "test": 1}
    assert built.poi_ids == ["p1", "p2"]
    assert built.requests["test"].row_ids.tolist() == [f"u1|{1338508800 + 9 * 3600}|p2"]


def test_history_is_strictly_earlier_and_reaches_into_validation(tmp_path):
    rows = [("u1", f"p{hour % 2}", hour) for hour in range(9)] + [("u1", "p1", 9), ("u1", "p0", 9)]
    built = build_rows(PROTOCOLS["calgary"], _folder(tmp_path, rows))
    last = built.requests["test"].take(slice(-1, None))
    assert last.stops.tolist() == [9]  # of 10 rows before it one has its very second


def test_collapsed_repeats_and_short_trajectories_are_left_out(tmp_path):
    rows = [("u1", "p1", 0), ("u1", "p1", 1), ("u1", "p2", 2), ("u2", "p1", 0)]
    built = build_rows(PROTOCOLS["calgary"], _folder(tmp_path, rows))
    assert sum(built.num_rows.values()) == 2  # the repeat collapses, u2's trajectory has one check-in


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"checkins\.parquet"):
        build_rows(PROTOCOLS["calgary"], tmp_path)


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / "checkins.parquet").write_bytes(b"not parquet")
    with pytest.raises(CorruptInputError, match=r"checkins\.parquet"):
        build_rows(PROTOCOLS["calgary"], tmp_path)


def _write(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    frame = pd.DataFrame(rows)
    frame["utc_time"] = pd.Timestamp("2012-06-01", tz="UTC") + pd.to_timedelta(frame.pop("hour"), unit="h")
    frame.assign(tz_offset_min=-240).to_parquet(tmp_path / "checkins.parquet")
    return tmp_path


def test_published_splits_and_sessions_are_taken_and_only_true_last_rows_are_scored(tmp_path):
    def row(user: str, poi: str, hour: int, split: str, session: int, true_last: bool | None = None):
        return {
            "user_id": user,
            "poi_id": poi,
            "hour": hour,
            "split": split,
            "session": session,
            "true_last": true_last,
        }

    rows = [
        row("u1", "p1", 0, "train", 0), row("u1", "p2", 30, "train", 0),
        row("u1", "p1", 40, "val", -1), row("u1", "p2", 41, "val", -1),
        row("u1", "p2", 90, "test", 7, False), row("u1", "p1", 91, "test", 7, True),
        row("u1", "p1", 92, "test", 8, False), row("u1", "p2", 93, "test", 8, False),
        row("u1", "p9", 94, "test", 9, False), row("u1", "p9", 95, "test", 9, True),
    ]  # fmt: skip

    built = build_rows(PROTOCOLS["nyc-table6-true"], _write(tmp_path, rows))

    assert built.num_rows == {"train": 2, "val": 2, "test": 6}
    # p1 is known though it is the first of its session; session 8's true last row is unknown, p9 is in no training row.
    assert built.requests["test"].row_ids.tolist() == [f"u1|{1338508800 + 91 * 3600}|p1"]
    assert built.requests["val"].row_ids.tolist() == [f"u1|{1338508800 + 41 * 3600}|p2"]


def test_with_the_whole_history_the_same_rows_are_scored_and_dropped_rows_are_seen(tmp_path):
    def row(poi: str, hour: int, split: str | None = None):
        return {"user_id": "u1", "poi_id": poi, "hour": hour, "getnext_split": split}

    rows = [
        *(row(f"p{hour % 2}", hour) for hour in range(6)), row("p7", 200), row("p8", 400),
        *(row(f"p{hour % 2}", 24 * 170 + hour, "test") for hour in range(4)),
    ]  # fmt: skip
    folder = _write(tmp_path, rows)

    cut, whole = (build_rows(PROTOCOLS[name], folder) for name in ("nyc-table6", "nyc-table6-history"))

    one, other = cut.requests["test"], whole.requests["test"]
    assert one.row_ids.tolist() == other.row_ids.tolist()
    assert len(one) == 1
    assert (one.stops - one.starts).tolist() == [9]
    assert (other.stops - other.starts).tolist() == [11]  # p7 and p8 stand alone, so the cut drops them
    assert whole.poi_ids == cut.poi_ids == ["p0", "p1"]


def test_estimated_days_do_not_reach_any_feature(tmp_path):
    def row(hour: int, half_hour: int, user: str = "u1"):
        return {
            "user_id": user,
            "poi_id": "p1",
            "hour": hour,
            "split": "train",
            "session": 0,
            "half_hour_utc": half_hour,
        }

    rows = [row(0, 20), row(1, 30), row(500, 10), row(501, 10), row(900, 12), row(0, 5, "u2")]
    built = build_rows(PROTOCOLS["ca-table6"], _write(tmp_path, rows))

    hours = (built.visits.timestamps_ms - built.visits.timestamps_ms.min()) / 3_600_000
    # The clock goes on from 10:00 to 15:00; at 5:00 it is the next day, and the same half hour is the same.
    assert (hours - hours[0]).tolist() == pytest.approx([0.0, 5.0, 19.0, 19.0 + 1 / 3600, 20.0, -7.5])


def test_a_session_of_two_is_not_scored(tmp_path):
    def row(hour: int, split: str, session: int):
        return {"user_id": "u1", "poi_id": "p1", "hour": hour, "split": split, "session": session}

    rows = [
        row(0, "train", 0),
        *(row(50 + n, "test", 1) for n in range(2)),
        *(row(90 + n, "test", 2) for n in range(3)),
    ]
    built = build_rows(PROTOCOLS["ca-exact-last"], _write(tmp_path, rows))
    assert built.requests["test"].row_ids.tolist() == [f"u1|{1338508800 + 92 * 3600}|p1"]


def test_whole_number_ids_times_without_a_zone_and_a_missing_offset_are_taken(tmp_path):
    times = pd.Timestamp("2012-06-01") + pd.to_timedelta(range(10), unit="h")
    frame = pd.DataFrame({"user_id": 7, "poi_id": [n % 2 for n in range(10)], "utc_time": times})
    frame.to_parquet(tmp_path / "checkins.parquet")

    built = build_rows(PROTOCOLS["time-split"], tmp_path)

    assert built.requests["test"].row_ids.tolist() == [f"7|{1338508800 + 9 * 3600}|1"]
    frame.drop(columns="poi_id").to_parquet(tmp_path / "checkins.parquet")
    with pytest.raises(CorruptInputError, match=r"lacks.*poi_id"):
        build_rows(PROTOCOLS["time-split"], tmp_path)


def test_a_folder_that_lacks_what_the_protocol_reads_is_named(tmp_path):
    with pytest.raises(CorruptInputError, match=r"lacks session, true_last.*time-split"):
        build_rows(
            PROTOCOLS["nyc-table6-true"],
            _write(tmp_path, [{"user_id": "u", "poi_id": "p", "hour": 0, "split": "train"}]),
        )


@needs_data
def test_the_floors_of_californias_column_are_reproduced():
    """Row count, popularity and visit counts; a kernel that reads days cannot be the same without them."""
    built = build_rows(PROTOCOLS["ca-table6"], DATA / "gowalla_ca_table6")
    requests = built.requests["test"]
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    assert built.num_rows == {"train": 190_572, "val": 17_079, "test": 12_696}
    assert len(requests) == 2750
    assert digest_rows(requests.row_ids) == PROTOCOLS["ca-table6"].digest
    found = [
        round(exact_mean(hit_values(rank_targets(score(requests, counts), requests.targets), 1)), 4)
        for score in (score_popularity, score_visits)
    ]
    assert found == [0.0218, 0.1625]


@needs_data
@pytest.mark.parametrize(
    ("protocol", "folder", "num_rows", "kernel_acc1", "kernel_mrr"),
    [
        ("nyc-table6", "fsq_nyc", 1351, 0.3620, 0.4823),
        ("nyc-table6-all", "fsq_nyc", 7685, 0.3340, 0.4710),
        ("nyc-lim-all", "fsq_nyc", 7924, 0.3438, 0.4752),
        ("charlotte", "fsq_charlotte", 381, 0.1916, 0.2588),
        ("calgary", "fsq_calgary", 353, 0.3768, 0.4983),
        ("gowalla-nyc", "gowalla_nyc", 2902, 0.1323, 0.1881),
        ("nyc-table6-true", "fsq_nyc_table6", 1350, 0.3630, 0.482),
        ("nyc-table6-history", "fsq_nyc", 1351, 0.383, 0.5038),
        ("nyc-table6-history-all", "fsq_nyc", 7685, 0.342, 0.4810),
        ("ca-exact-all", "gowalla_ca_exact", 6876, 0.2501, 0.3295),
        ("ca-exact-last", "gowalla_ca_exact", 1135, 0.2405, 0.336),
    ],
)
def test_published_rows_and_baselines_are_reproduced(protocol, folder, num_rows, kernel_acc1, kernel_mrr):
    built = build_rows(PROTOCOLS[protocol], DATA / folder)
    requests = built.requests["test"]
    assert len(requests) == num_rows
    assert digest_rows(requests.row_ids) == PROTOCOLS[protocol].digest
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    ranks = rank_targets(score_kernel(requests, counts), requests.targets)
    assert exact_mean(hit_values(ranks, 1)) == pytest.approx(kernel_acc1, abs=0.0015)
    assert exact_mean(reciprocal_values(ranks)) == pytest.approx(kernel_mrr, abs=0.001)


@needs_data
def test_popularity_and_visit_counter_reproduce_table6_to_the_last_digit():
    built = build_rows(PROTOCOLS["nyc-table6"], DATA / "fsq_nyc")
    requests = built.requests["test"]
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    expected = {score_popularity: (0.0096, 0.1170, 0.0211), score_visits: (0.2457, 0.8179, 0.3925)}
    for score, figures in expected.items():
        ranks = rank_targets(score(requests, counts), requests.targets)
        found = (*(exact_mean(hit_values(ranks, k)) for k in (1, 100)), exact_mean(reciprocal_values(ranks)))
        assert [round(value, 4) for value in found] == list(figures)
