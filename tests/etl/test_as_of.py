"""As-of features: known from the day after they were made, the first night's known before."""

from datetime import date, timedelta

from etl.as_of import known_before
from etl.profiles import profile_states
from etl.session import local_frame
from tests.rows import DAY, frame_of

FIRST = DAY - timedelta(days=5)


def test_a_row_counts_from_the_day_after_it_was_made_and_the_first_night_counts_ever(spark):
    told = [("ann", FIRST, 1.0), ("ann", DAY, 2.0), ("ann", DAY + timedelta(days=1), None), ("bob", DAY, 9.0)]
    asked = [("ann", FIRST - timedelta(days=99)), *(("ann", DAY + timedelta(days=n)) for n in range(3))]
    asked += [("bob", DAY), ("ann", DAY), ("eve", DAY)]  # twice Ann on one day: one row

    found = known_before(
        local_frame(spark, asked, "user_id string, asked date"),
        local_frame(spark, told, "user_id string, day date, home_lon double"),
        on="asked",
        first_day=FIRST,
    ).collect()

    assert sorted(
        (row["user_id"], row["asked"], row["home_lon"]) for row in found if row["user_id"] == "ann"
    ) == [
        ("ann", FIRST - timedelta(days=99), 1.0),  # handed over by the first night
        ("ann", DAY, 1.0),  # what the night of the day itself finds out is not known on it
        ("ann", DAY + timedelta(days=1), 2.0),
        ("ann", DAY + timedelta(days=2), None),  # the last row says that no home is known any more
    ]
    assert {(row["user_id"], row["home_lon"]) for row in found} >= {("bob", None), ("eve", None)}


def test_a_profile_has_a_state_for_every_day_that_changed_it(spark):
    def told(day: date, attribute: str, value: str) -> dict[str, object]:
        return {"day": day, "user_id": "ann", "attribute": attribute, "value": value}

    rows = [
        told(FIRST, "age", "20s"),
        told(FIRST, "city", "AMS"),
        told(DAY, "age", "30s"),
        told(DAY, "city", "AMS"),
        told(DAY + timedelta(days=1), "age", "30s"),  # told again: no change
    ]

    found = profile_states(frame_of(spark, "raw_profiles", rows)).collect()

    states = {row["day"]: set(row["profile_ids"]) for row in found}
    assert sorted(states) == [FIRST, DAY]
    assert len(states[FIRST] & states[DAY]) == 1  # the city stays, the age changes
