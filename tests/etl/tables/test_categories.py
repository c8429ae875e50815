"""Category ids are append-only, and the columns decide as the taxonomy does."""

from pyspark.sql import functions as F

from conf.taxonomy import load_taxonomy
from etl.spark.session import local_frame
from etl.tables.categories import build_categories, is_of_interest, leaf_category
from tests.rows import DAY

NAMES = [
    ("Thai Restaurant", "Food > Thai Restaurant"),
    ("Gas Station / Garage", "Shop & Service > Gas Station / Garage"),
    ("Hotel", "Travel & Transport > Hotel"),
    ("Ramen /  Noodle House", "Ramen /  Noodle House"),
    ("Elementary Schools", "Elementary Schools"),
    ("Xyzzy", "Plugh > Xyzzy"),
    ("  bank ", "x"),
]


def test_columns_and_python_give_the_same_verdicts(spark):
    frame = local_frame(spark, NAMES, "leaf string, path string")

    rows = frame.select(
        "leaf", "path", is_of_interest(F.col("leaf"), F.col("path"), load_taxonomy()).alias("found")
    ).collect()

    assert [r["found"] for r in rows] == [
        load_taxonomy().resolve(r["leaf"], r["path"]).is_interest for r in rows
    ]


def test_new_categories_follow_the_alphabet_after_the_known_ones(spark):
    pois = local_frame(
        spark,
        [
            ("Zoo", "A > Zoo"),
            ("Bar", "B > Bar"),
            ("Bar", "C > Bar"),
            ("Bar", "C > Bar"),
            (None, None),
            ("Cafe", None),
        ],
        "leaf string, category_path string",
    )
    known = local_frame(spark, [("Zoo",)], "category string")

    rows = build_categories(
        pois, known, day=DAY, index_version=1, first_id=5, taxonomy=load_taxonomy()
    ).collect()

    assert [(r["category_id"], r["category"], r["category_path"]) for r in rows] == [
        (5, "Bar", "C > Bar"),  # the more frequent path
        (6, "Cafe", "Cafe"),  # no path: the leaf stands for it
    ]


def test_the_leaf_is_the_category_else_the_end_of_the_path(spark):
    frame = local_frame(
        spark,
        [("Bar", "x > y", "Bar"), (" ", "x > y", "y"), (None, None, None)],
        "c string, p string, expected string",
    )

    rows = frame.select(leaf_category(F.col("c"), F.col("p")).alias("found"), "expected").collect()

    assert [row["found"] for row in rows] == [row["expected"] for row in rows]
