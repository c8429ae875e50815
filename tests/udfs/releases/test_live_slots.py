"""Live on a date is said three times, for columns, arrays and Arrow: here they are compared."""

from datetime import date, timedelta

import pytest
from pyspark.sql import functions as F

from conf.releases import Release
from etl.columns.poi_slots import is_live, keep_known
from models.data.catalogue import Catalogue, day_ms
from tests.udfs.feature_city import DAY_1, slot
from udfs.releases.reader import _keep_live_arrow

pytestmark = pytest.mark.spark
DAYS = [DAY_1 + timedelta(days=number) for number in range(-2, 4)]


def test_columns_arrays_and_arrow_agree_which_slots_are_live(city):
    slots = [
        slot(number, valid_from=start, indexed_day=DAYS[0], valid_to=end, closed_day=end)
        for number, (start, end) in enumerate((start, end) for start in DAYS[:4] for end in (None, *DAYS[2:]))
    ]
    frame = city.frame(
        "poi_index", [{**row, "poi_id": f"p{n}", "inner_id": n} for n, row in enumerate(slots)]
    )
    rows = frame.toArrow()
    for day in DAYS:
        known = keep_known(frame, day=day, index_version=1)
        by_column = {row["poi_id"] for row in known.where(is_live(F.lit(day))).collect()}
        release = Release(1, day, 0, {}, "m", 1, None, "run", False)
        by_arrow = set(_keep_live_arrow(rows, rows, release)["poi_id"].to_pylist())
        catalogue = Catalogue.from_arrow(known.toArrow())
        by_array = set(catalogue.poi_ids[catalogue.live_mask([day_ms(day)])[0]])

        assert by_column == by_arrow == by_array
        assert by_column or day == date(2026, 2, 27)
