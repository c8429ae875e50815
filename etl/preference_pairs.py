"""Table `preference_pairs`: chosen and rejected POIs of one request, for DPO and S-DPO (design 4).

In: `ranking_samples` of the day. Chosen = clicked; rejected = shown in the same request and not clicked, the best
positions first. Rule of these pairs: `clicks`. Run: python -m etl preference_pairs --day D.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.tables import PREFERENCE_PAIRS, RANKING_SAMPLES

RULE = "clicks"
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
    names = list(CANDIDATE_PARTS)
    zipped = F.arrays_zip(*(F.col(column).alias(part) for part, column in CANDIDATE_PARTS.items()))
    candidates = F.transform(zipped, lambda c: F.struct(*(c[str(part)].alias(part) for part in names)))
    split_up = requests.withColumn("candidates", candidates).withColumns(
        {
            "clicked": F.filter("candidates", lambda c: c["label"] == 1),
            "rejected": F.slice(F.filter("candidates", lambda c: c["label"] == 0), 1, max_rejected),
        }
    )
    pairs = split_up.where("size(clicked) > 0 AND size(rejected) > 0").withColumn(
        "chosen", F.explode("clicked")
    )
    shared = [c for c in PREFERENCE_PAIRS.column_names if c in RANKING_SAMPLES.column_names and c != "day"]
    return pairs.select(
        *shared,
        F.concat_ws("/", "request_id", "chosen.poi_id").alias("pair_id"),
        F.lit(RULE).alias("rule"),
        *(F.col(f"chosen.{part}").alias(f"chosen_{part}") for part in REJECTED_ARRAYS.values()),
        *(F.col(f"rejected.{part}").alias(name) for name, part in REJECTED_ARRAYS.items()),
    )
