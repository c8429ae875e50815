"""Deletion: at odd paths too, no file of a version that must stay readable is deleted."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.errors import DeletionRefusedError, SettingsError
from conf.settings import load_settings
from etl.delta import retention
from etl.delta.storage import read_table, replace_day
from etl.spark.session import local_frame

pytestmark = pytest.mark.spark
DAY = date(2026, 1, 5)
PLACES = (
    "user_id string, home_lon double, home_lat double, home_days int, "
    "work_lon double, work_lat double, work_days int"
)
ODD = ("team#1", "a?b", "a b", "größe", "50%", "a+b", "k=v", "it's", "[x]", "{x}", 'say"so', "a*b", "a;b",
       "a:b", "a,b", "a&b", "x" * 200, "#", "?x=1#y")  # fmt: skip


def write(spark, root, user):
    frame = local_frame(spark, [(user, 4.9, 52.3, 9, None, None, 0)], PLACES)
    return replace_day(frame, "user_places", root, day=DAY, run_id="r", job="test")


def users(spark, root, version=None):
    return [row["user_id"] for row in read_table(spark, root, "user_places", version=version).collect()]


def data_files(root):
    return sorted((Path(root) / "user_places").rglob("*.parquet"))


@pytest.mark.operations("c18")
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.sampled_from(ODD), min_size=1, max_size=3))
def test_a_vacuum_keeps_what_is_pinned_whatever_the_folder_is_called(spark, tmp_path_factory, parts):
    root = str(tmp_path_factory.mktemp("root").joinpath(*parts))
    versions = [write(spark, root, user) for user in ("ann", "bob", "cid")]

    gone = retention.vacuum_table(spark, root, "user_places", keep_versions=versions[:1], hours=0)

    assert len(gone) == 1
    assert users(spark, root) == ["cid"]
    assert users(spark, root, versions[0]) == ["ann"]

    start = retention.restart_history(spark, root, "user_places")
    shown = retention.show_version(spark, root, "user_places", versions[0])
    retention.show_version(spark, root, "user_places", start)
    retention.forget_history(spark, root, "user_places", start)

    assert users(spark, root) == ["cid"]
    assert users(spark, root, shown) == ["ann"]
    assert len([path for path in data_files(root) if "_delta_log" not in path.parts]) == 2


@pytest.mark.operations("c18")
@pytest.mark.parametrize("pinned", [False, True])
def test_nothing_goes_if_the_plan_and_delta_disagree(spark, tmp_path, monkeypatch, pinned):
    root = str(tmp_path)
    first = write(spark, root, "ann")
    write(spark, root, "bob")
    before = data_files(root)
    real = retention._files_of
    # A plan that has lost sight of a file, as a misread path makes it.
    monkeypatch.setattr(
        retention, "_files_of", lambda table: real(table) if (table.version() != first) == pinned else set()
    )

    with pytest.raises(DeletionRefusedError, match="no file of the table was touched") as raised:
        retention.vacuum_table(spark, root, "user_places", keep_versions=[first], hours=0)

    assert raised.value.version == (first if pinned else None)
    assert data_files(root) == before


@pytest.mark.parametrize(
    "root", ["/data/a%20b", "/data/%41", "/data/a\\b", "/data/a`b", "s3://bucket/a#b", "file:///data/%2F"]
)
def test_a_root_that_readers_take_for_different_folders_is_refused(root):
    with pytest.raises(SettingsError, match="read as something else"):
        load_settings(overrides=[f"storage.root={root}"])


def test_a_local_uri_is_the_folder_as_it_is_spelt():
    assert load_settings(overrides=["storage.root=file:///data/a#b"]).storage.root == "/data/a#b"
