"""Feast definitions over our feature tables: entities, sources and feature views of the current release.

    SPACETIME_ROOT=/data/warehouse feast apply        # in a folder with this file and a feature_store.yaml

Every source is a query at the Delta version that one release pins, filtered by its model, so the views of users and
of POIs can never show vectors of two models. A feature made at the end of a day is known from the next day on, and
that is its event timestamp: a point-in-time join in Feast takes nothing from the day of the request itself. A
training set over the releases of many days comes from `udfs.training_sets.reader.read_training_set`. Apply again
after each release (schedule it on the asset `spacetime://features/releases`). Needs `feast[spark]`, in an environment
of its own with this project installed; the columns are those of `conf/tables.py`.
"""

import os
from datetime import timedelta

from feast import Entity, FeatureView, Field, ValueType
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Array, Float32, Int32, String

from conf.releases import find_release
from conf.tables import TABLES
from etl.delta.storage import table_location
from udfs.releases.release_log import load_releases

FEAST_TYPES = {"string": String, "int": Int32, "float": Float32, "array<float>": Array(Float32)}
ROOT = os.environ["SPACETIME_ROOT"]
RELEASE = find_release(load_releases(None, ROOT), ROOT)

user = Entity(
    name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="user, as delivered"
)
poi = Entity(
    name="poi", join_keys=["poi_id"], value_type=ValueType.STRING, description="catalogue id of the POI"
)
candidate_rank = Entity(
    name="candidate_rank", join_keys=["rank"], value_type=ValueType.INT32, description="1 = most probable"
)
request = Entity(
    name="request",
    join_keys=["request_id"],
    value_type=ValueType.STRING,
    description="one call of the recommender",
)


def released_view(
    table: str, entities: list[Entity], features: tuple[str, ...], ttl: timedelta
) -> FeatureView:
    """Returns the view of a feature table as the current release shows it.

    Args:
        table: name of the feature table.
        entities: what a row belongs to.
        features: columns of the table; types and descriptions come from its contract.
        ttl: how long a row counts; 0 = for ever.
    """
    contract, version = TABLES[table], RELEASE.table_versions[table]
    keys = [key for entity in entities for key in [entity.join_key]]
    columns = [*keys, *features]
    of_release = f"model_version = '{RELEASE.model_version}' AND day <= DATE'{RELEASE.day}'"
    query = (
        f"SELECT {', '.join(columns)}, CAST(DATE_ADD(day, 1) AS TIMESTAMP) AS event_timestamp "
        f"FROM delta.`{table_location(ROOT, table)}` VERSION AS OF {version} WHERE {of_release}"
    )
    source = SparkSource(
        name=table, query=query, timestamp_field="event_timestamp", description=contract.grain
    )
    fields = [
        Field(name=name, dtype=FEAST_TYPES[contract.column(name).type], description=contract.column(name).doc)
        for name in features
    ]
    tags = {"release": str(RELEASE.release_id), "model_version": RELEASE.model_version,
            "index_version": str(RELEASE.index_version)}  # fmt: skip
    return FeatureView(name=table, entities=entities, schema=fields, source=source, ttl=ttl, tags=tags)


user_embeddings = released_view("user_embeddings", [user], ("embedding",), timedelta(0))
poi_embeddings = released_view("poi_embeddings", [poi], ("embedding",), timedelta(0))
ranking_scores = released_view("ranking_scores", [request, poi], ("click_logit", "score"), timedelta(days=2))
poi_candidates = released_view(
    "poi_candidates",
    [request, candidate_rank],
    ("poi_id", "log_probability", "source", "p_new"),
    timedelta(days=2),
)
