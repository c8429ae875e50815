"""Table `preference_pairs`: chosen and rejected POIs of one request, for DPO and S-DPO (docs/design.md 4).

In: `ranking_samples` of the day, `categories`. Rules (setting `samples.preference_rules`):

- `clicks`: chosen = clicked; rejected = shown in the same request and not clicked;
- `meal_time`, an example of a trained behaviour: at meal times (local) chosen = POIs where one eats, rejected = the
  others shown, whatever was clicked. At other times there are two rows: one POI of each kind is chosen over the other,
  and vice versa. The loss of these two rows is least if the model prefers neither more than before, so the behaviour
  stays limited to meal times.

Rejected POIs with the best positions come first. Run: python -m etl preference_pairs --day D.
"""

from collections.abc import Callable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.tables import PREFERENCE_PAIRS, RANKING_SAMPLES
from etl.columns.spacetime import local_hour

CLICKS, MEAL_TIME = "clicks", "meal_time"
MEAL_HOURS = ((11, 14), (18, 21))
"""From, and up to but not including, local hours of the day."""
MEAL_LEVELS = ("Food", "Dining and Drinking")
"""Top levels of categories where one eats."""
CANDIDATE_PARTS = {
    "poi_id": "candidate_poi_ids",
    "block_id": "candidate_block_ids",
    "inner_id": "candidate_inner_ids",
    "lon": "candidate_lons",
    "lat": "candidate_lats",
    "category_id": "candidate_category_ids",
    "position": "candidate_positions",
    "label": "labels",
}
REJECTED_ARRAYS = {f"rejected_{part}s": part for part in CANDIDATE_PARTS if part not in ("position", "label")}


def build_preference_pairs(requests: DataFrame, *, max_rejected: int) -> DataFrame:
    """Builds one row per clicked POI of a request that also showed POIs that were not clicked.

    Args:
        requests: rows of `ranking_samples`.
        max_rejected: rejected POIs kept per row.

    Returns:
        Rows of the contract without `day`.
    """
    return _pair_up(requests, lambda shown: shown["label"] == 1, rule=CLICKS, max_rejected=max_rejected)


def build_meal_time_pairs(requests: DataFrame, categories: DataFrame, *, max_rejected: int) -> DataFrame:
    """Builds one row per POI where one eats, of meal-time requests that also showed others; two rows of other requests.

    Args:
        requests: rows of `ranking_samples`.
        categories: `category_id`, `category_path`, of the index version of the requests.
        max_rejected: rejected POIs kept per row.

    Returns:
        Rows of the contract without `day`.
    """
    hour = local_hour(F.col("request_ts_ms"), F.col("tz_offset_min"))
    is_meal_time = F.lit(False)
    for start, stop in MEAL_HOURS:
        is_meal_time = is_meal_time | ((hour >= start) & (hour < stop))
    top_level = F.split("category_path", " > ").getItem(0)
    meals = categories.where(top_level.isin(*MEAL_LEVELS)).agg(F.collect_set("category_id").alias("meal_ids"))
    known = requests.crossJoin(F.broadcast(meals))

    def is_meal(shown: Column) -> Column:
        return F.array_contains("meal_ids", shown["category_id"])

    at_meals = _pair_up(known.where(is_meal_time), is_meal, rule=MEAL_TIME, max_rejected=max_rejected)
    elsewhere = [
        _pair_up(known.where(~is_meal_time), is_chosen, rule=MEAL_TIME, max_rejected=1, max_chosen=1)
        for is_chosen in (is_meal, lambda shown: ~is_meal(shown))
    ]
    return at_meals.unionByName(elsewhere[0]).unionByName(elsewhere[1])


def _pair_up(
    requests: DataFrame,
    is_chosen: Callable[[Column], Column],
    *,
    rule: str,
    max_rejected: int,
    max_chosen: int | None = None,
) -> DataFrame:
    """Builds one row per chosen candidate with the rejected ones; none if either kind is missing."""
    zipped = F.arrays_zip(*(F.col(column).alias(part) for part, column in CANDIDATE_PARTS.items()))
    candidates = F.transform(zipped, lambda c: F.struct(*(c[part].alias(part) for part in CANDIDATE_PARTS)))
    chosen = F.filter("candidates", is_chosen)
    split_up = requests.withColumn("candidates", candidates).withColumns(
        {
            "all_chosen": chosen if max_chosen is None else F.slice(chosen, 1, max_chosen),
            "rejected": F.slice(F.filter("candidates", lambda shown: ~is_chosen(shown)), 1, max_rejected),
        }
    )
    pairs = split_up.where("size(all_chosen) > 0 AND size(rejected) > 0").withColumn(
        "chosen", F.explode("all_chosen")
    )
    shared = [c for c in PREFERENCE_PAIRS.column_names if c in RANKING_SAMPLES.column_names and c != "day"]
    # Ids of click pairs consist of request and POI alone; other rules add their name.
    named = () if rule == CLICKS else (F.lit(rule),)
    return pairs.select(
        *shared,
        F.concat_ws("/", "request_id", "chosen.poi_id", *named).alias("pair_id"),
        F.lit(rule).alias("rule"),
        *(F.col(f"chosen.{part}").alias(f"chosen_{part}") for part in REJECTED_ARRAYS.values()),
        *(F.col(f"rejected.{part}").alias(name) for name, part in REJECTED_ARRAYS.items()),
    )
