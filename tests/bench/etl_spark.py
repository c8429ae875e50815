"""The project's own clean -> index -> sequences over the Parquet of `etl_city`, as one side of `etl_rivals`.

The transforms are those of the nightly jobs, put together as on a first night; what is cut between two steps
(`compute_once`) is cut as there, and the index is written and read again. The day of delivery is the day of the job, so
all histories are made again. Left out against the nightly: Delta (Parquet in, Parquet out), the tables written beside
(quarantine, counts), home and work. What is never written is never computed: Catalyst leaves out detail, payload,
repairs and flags of a row.
"""

from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import Settings, SparkSettings
from conf.tables import ACTION_SEQUENCES, TABLES
from conf.taxonomy import load_taxonomy
from etl.delta.contracts import conform, spark_schema
from etl.jobs import index_pois
from etl.spark.session import compute_once, open_session
from etl.tables import action_sequences, categories, clean_actions, poi_index
from tests.bench.etl_city import DAY

VERSION = 1


def start() -> SparkSession:
    """Opens a session as a night on two cores has it."""
    settings = SparkSettings(driver_memory="4g")
    return open_session(Settings(spark=settings), "bench-etl")


def run(spark: SparkSession, folder: Path, target: Path) -> None:
    """Reads the raw Parquet of `folder` and writes the sequences to `target`."""
    settings = Settings()
    known_categories, slots = build_index(spark, folder, settings)
    # As a table, like the nightly's: then its size is known, and the join with it is planned by its size.
    slots.write.mode("overwrite").parquet(f"{target}-index")
    slots = spark.read.parquet(f"{target}-index")
    raw = spark.read.parquet(str(folder / "raw_actions.parquet"))
    judged = clean_actions.judge_actions(
        raw, slots, _nothing(spark, "cleaned_actions"), day=DAY, settings=settings.clean
    )
    places = _nothing(spark, "user_places")
    cleaned = clean_actions.with_interest(
        clean_actions.keep_accepted(judged), known_categories, places, at_place_km=0.05
    )
    sequences = action_sequences.build_action_sequences(
        cleaned,
        places,
        _nothing(spark, "raw_profiles"),
        index_version=VERSION,
        settings=settings.sequences,
    )
    rows = conform(sequences.withColumn("day", F.lit(DAY)), ACTION_SEQUENCES)
    rows.write.mode("overwrite").parquet(str(target))


def build_index(spark: SparkSession, folder: Path, settings: Settings) -> tuple[DataFrame, DataFrame]:
    """Returns categories and slots of a first night."""
    raw = spark.read.parquet(str(folder / "raw_pois.parquet"))
    index = _nothing(spark, "poi_index")
    judged = poi_index.judge_pois(raw, index, day=DAY, settings=settings.clean)
    pois = compute_once(index_pois.describe_pois(judged.where("status = 'accepted'")))
    new_categories = compute_once(
        categories.build_categories(
            pois,
            _nothing(spark, "categories"),
            day=DAY,
            index_version=VERSION,
            first_id=1,
            taxonomy=load_taxonomy(),
        )
    )
    ids = new_categories.select("category_id", F.col("category").alias("leaf"))
    placed = pois.join(F.broadcast(ids), "leaf", "left").fillna(0, ["category_id"])
    moved_km, cell_km = settings.index.moved_km, settings.index.cell_km
    compared = compute_once(poi_index.compare_with_index(placed, day=DAY, moved_km=moved_km, cell_km=cell_km))
    blocks = compute_once(
        poi_index.build_blocks(
            compared,
            _nothing(spark, "blocks"),
            day=DAY,
            index_version=VERSION,
            first_id=0,
            cell_km=cell_km,
        )
    )
    slots = poi_index.build_poi_index(compared, index, blocks, day=DAY, index_version=VERSION)
    return new_categories, slots


def _nothing(spark: SparkSession, name: str) -> DataFrame:
    return spark.createDataFrame([], spark_schema(TABLES[name]))
