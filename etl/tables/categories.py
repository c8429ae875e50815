"""Table `categories`: leaf categories with append-only ids and the taxonomy's verdict.

In: accepted POIs of the day (with `leaf` and `category_path`) and the categories known before. Out: the new
rows. Part of job `poi_index`.
"""

from datetime import date
from itertools import chain

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.taxonomy import LEVEL_SEPARATOR, Taxonomy


def leaf_category(category: Column, category_path: Column) -> Column:
    """Returns the leaf: the category as delivered, else the last level of its path, else null."""
    last_level = F.element_at(F.split(category_path, LEVEL_SEPARATOR), -1)
    return F.coalesce(F.nullif(F.trim(category), F.lit("")), F.nullif(F.trim(last_level), F.lit("")))


def build_categories(
    pois: DataFrame, known: DataFrame, *, day: date, index_version: int, first_id: int, taxonomy: Taxonomy
) -> DataFrame:
    """Builds the rows of new categories.

    Args:
        pois: accepted POIs with `leaf` and `category_path`, both may be null.
        known: categories added before the day, with `category`.
        day: the job's day.
        index_version: version of the index that the ids belong to.
        first_id: smallest free id.
        taxonomy: decides which categories are of interest.

    Returns:
        Rows of the contract. Ids follow the alphabet within a day. A leaf delivered with several paths keeps
        the most frequent one; ties go to the first in the alphabet.
    """
    new = (
        pois.where("leaf IS NOT NULL")
        .join(known.select(F.col("category").alias("leaf")), "leaf", "left_anti")
        .groupBy("leaf")
        .agg(F.mode("category_path", deterministic=True).alias("category_path"))
    )
    path = F.coalesce("category_path", "leaf")
    # One task, but over categories: hundreds of rows.
    number = F.row_number().over(Window.orderBy("leaf"))
    return new.select(
        F.lit(index_version).alias("index_version"),
        (number + F.lit(first_id - 1)).alias("category_id"),
        F.col("leaf").alias("category"),
        path.alias("category_path"),
        is_of_interest(F.col("leaf"), path, taxonomy).alias("is_interest"),
        F.lit(day).alias("first_day"),
    )


def is_of_interest(leaf: Column, category_path: Column, taxonomy: Taxonomy) -> Column:
    """Decides a category as `Taxonomy.resolve` does, in columns."""
    verdicts = F.create_map(
        *chain.from_iterable((F.lit(name), F.lit(kind)) for name, kind in taxonomy.names.items())
    )
    levels = F.concat(F.array(leaf), F.reverse(F.split(category_path, LEVEL_SEPARATOR)))
    by_level = F.transform(levels, lambda level: F.element_at(verdicts, F.trim(F.lower(level))))
    by_name = F.get(F.filter(by_level, lambda verdict: verdict.isNotNull()), F.lit(0))
    by_word = F.lit(None).cast("boolean")
    for pattern, kind in reversed(taxonomy.word_patterns):
        by_word = F.when(F.lower(leaf).rlike(pattern), F.lit(kind)).otherwise(by_word)
    return F.coalesce(by_name, by_word, F.lit(taxonomy.default_interest))
