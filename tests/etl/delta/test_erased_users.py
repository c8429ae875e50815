"""An export that still holds an erased user does not bring that user back, however it spells the id."""

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from conf.settings import Settings
from conf.tables import ERASED_USERS
from etl.delta.contracts import spark_schema
from etl.delta.erased_users import IS_ERASED, digest_user, leave_out, mark_erased
from etl.delta.storage import append_log, read_table
from etl.spark.session import local_frame
from tests.etl.checkin_folder import CHECKINS, FIRST, SECOND, deliver, write_folder

pytestmark = pytest.mark.spark


def erase(spark: SparkSession, settings: Settings, *users: str) -> None:
    rows = [(digest_user(user), 0, "erase-1") for user in users]
    frame = local_frame(spark, rows, spark_schema(ERASED_USERS))
    append_log(frame, ERASED_USERS.name, settings.storage.root, run_id="erase-1", job="erase", day=FIRST)


def users_of(spark: SparkSession, settings: Settings, table: str = "raw_actions") -> set[str]:
    rows = read_table(spark, settings.storage.root, table).select("user_id").distinct().collect()
    return {row["user_id"].strip() for row in rows}


def test_rows_of_erased_users_are_left_out_and_counted_night_after_night(spark, made, tmp_path: Path):
    padded = [(" ann\u00a0", *row[1:]) if row[0] == "ann" and row[5].day == 4 else row for row in CHECKINS]
    write_folder(tmp_path, rows=padded)
    erase(spark, made, "ann")

    first = deliver(spark, made, tmp_path, FIRST)
    second = deliver(spark, made, tmp_path, SECOND)

    assert first["records"] == {
        "in_source": 5, "delivered": 1, "delivered_on_other_days": 0, "after_the_day": 0, "of_erased_users": 4
    }  # fmt: skip
    assert second["records"] == {
        "in_source": 5, "delivered": 0, "delivered_on_other_days": 1, "after_the_day": 0, "of_erased_users": 4
    }  # fmt: skip
    assert users_of(spark, made) == {"bob"}
    assert "ann" not in users_of(spark, made, "raw_impressions")


def test_damage_around_an_id_does_not_bring_a_user_back(spark):
    rows = local_frame(
        spark,
        [
            ("ann\u0000",),
            ("\ufffdann",),
            (" ann\u00a0",),
            ("anna",),
            ("ann\ufffd7",),
            ("\u263aann",),
            ("ann smith",),
            ("\U0001fae0ann",),
            (None,),
        ],
        "user_id string",
    )
    erased = local_frame(spark, [(digest_user("ann"),), (digest_user("bob"),)], "user_digest string")

    left = {row["user_id"] for row in leave_out(rows, erased).collect()}
    marked = {row["user_id"] for row in mark_erased(rows, erased).collect() if row[IS_ERASED]}

    assert left == {"anna", "ann smith", "\u263aann", "\U0001fae0ann", None}
    assert marked == {"ann\u0000", "\ufffdann", " ann\u00a0", "ann\ufffd7"}
    assert mark_erased(rows, erased).count() == 9


def test_a_switch_lets_them_in_again(spark, made, tmp_path: Path):
    write_folder(tmp_path)
    erase(spark, made, "ann", "carl")

    notes = deliver(spark, made, tmp_path, FIRST, readmit_erased=True)

    assert notes["records"]["of_erased_users"] == 0
    assert users_of(spark, made) == {"ann", "bob"}


def test_the_digest_is_of_the_normalised_id() -> None:
    assert digest_user("\u00a0ann ") == digest_user("ann") != digest_user("Ann")
