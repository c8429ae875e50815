"""The city of the erasure bench: users whose ids a deletion might miss, two models, rollbacks, and nights to come.

A few users of the synthetic city get other ids on their way into the tables: wrapped in blanks in some rows, like that
of somebody else but for the case, full of signs that a pattern would read as something else, digits only, longer than
the cleaning takes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path

import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import Settings
from conf.tables import QUARANTINED_ROWS, TABLES
from etl.city import source
from etl.delta import contracts, storage
from etl.delta.erasure import user_tables
from tests import small_city

NUM_USERS, NUM_LATER = 120, 5
ODD_IDS = {
    "u0000001": "oddPadded",
    "u0000002": "OddAnn",
    "u0000003": "oddann",
    "u0000004": "++odd.*|[x]$\\E",
    "u0000005": "10126086",
    "u0000006": "odd-Ünï-漢字-'quoted\"",
    "u0000007": "odd-long-" + "x" * 10_000,
}
"""Users of the city and the ids that they get."""
BYSTANDERS = ("oddann",)
"""Of the odd ids, those that nobody asks to erase."""
PADDED, BLANKS = "oddPadded", "oddPadded \u00a0"
LAST = small_city.DAYS[-1]


def write_settings(folder: Path) -> Path:
    """Writes the settings of a city that lives on after the last release."""
    layer = small_city.write_settings(folder, num_users=NUM_USERS)
    content = yaml.safe_load(layer.read_text())
    content["city"]["num_days"] += NUM_LATER
    layer.write_text(yaml.safe_dump(content))
    return layer


@contextlib.contextmanager
def odd_ids() -> Iterator[None]:
    """Has the synthetic source deliver the odd ids."""
    read = source.SyntheticCity.read

    def changed(
        self: source.SyntheticCity, spark: SparkSession, settings: Settings, **more: object
    ) -> Mapping[str, DataFrame]:
        tables = read(self, spark, settings, **more)  # type: ignore[arg-type]
        return {
            name: respell(frame) if "user_id" in frame.columns else frame for name, frame in tables.items()
        }

    source.SyntheticCity.read = changed  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        source.SyntheticCity.read = read  # type: ignore[method-assign]


def respell(frame: DataFrame) -> DataFrame:
    """Gives users their odd ids; a third of the rows of one of them are wrapped in blanks."""
    pairs = [F.lit(text) for pair in ODD_IDS.items() for text in pair]
    odd = F.coalesce(F.create_map(*pairs)[F.col("user_id")], F.col("user_id"))
    salt = next(name for name in ("action_id", "request_id", "attribute", "user_id") if name in frame.columns)
    is_padded = (odd == PADDED) & (F.pmod(F.xxhash64(salt), F.lit(3)) == 0)
    return frame.withColumn("user_id", F.when(is_padded, F.lit(BLANKS)).otherwise(odd))


def make_city(layer: Path) -> None:
    """Makes three nights with a release each, two models, a rollback from the second, reports and explanations."""
    days = [str(day) for day in small_city.DAYS]
    commands = [*small_city.night(0), ("etl", "training_others", "--day", days[0]), *small_city.training()]
    for number, day in enumerate(days):
        commands += small_city.night(number) if number else []
        commands += [("udfs", "release", "--day", day)]
    other = [word for key in (*small_city.RECIPE_KEYS, "pretrain.seed=2") for word in ("--set-recipe", key)]
    commands += [
        ("models", "report", "--day", days[-1]),
        ("etl", "samples", "--day", days[-1]),
        ("models", "train", "--day", days[-1], *other),
        ("udfs", "release", "--day", days[-1], "--replace"),
        ("udfs", "rollback", "--run-id", "back-to-the-first-model"),
    ]
    for words in commands:
        small_city.run(layer, *words)


def later_night(layer: Path, number: int) -> dict[str, object]:
    """Runs a night after the erasure, from the source that still holds the users."""
    return small_city.run(
        layer, "etl", "night", "--source", "synthetic", "--day", str(later_day(number)),
        "--set", f"source.since={small_city.DAYS[0]}",
    )  # fmt: skip


def later_day(number: int) -> date:
    """Returns the day of a night after the erasure; the first has number 0."""
    return LAST + timedelta(days=number + 1)


def digest_others(spark: SparkSession, root: str, erased: list[str]) -> dict[str, str]:
    """Digests, by table, the rows of users whom nobody asks to erase, and rows of nobody.

    Rows of the erased are told apart here by plain comparison, and in texts by whether the id stands in them.
    """
    digests = {}
    for name in user_tables():
        if not storage.table_exists(spark, root, name) or name == QUARANTINED_ROWS.name:
            continue
        rows = storage.read_table(spark, root, name)
        if "user_id" in rows.columns:
            plain = F.trim(F.translate("user_id", "\u00a0", " "))
            rows = rows.where(F.coalesce(~plain.isin(erased), F.lit(True)))
        # Raw rows name a user in damaged ids and in texts that could not be read, too.
        for text in {"user_id", "record", "corrupt_record"} & set(rows.columns) if TABLES[name].raw else ():
            rows = rows.where(F.coalesce(~_holds_any(F.col(text), erased), F.lit(True)))
        digests[name] = contracts.digest_table(rows, TABLES[name])
    return digests


def count_returned(spark: SparkSession, root: str, erased: list[str]) -> int:
    """Counts rows of erased users in every table that has a column of users."""
    total = 0
    for name in user_tables():
        if storage.table_exists(spark, root, name) and "user_id" in TABLES[name].column_names:
            plain = F.trim(F.translate("user_id", "\u00a0", " "))
            total += storage.read_table(spark, root, name).where(plain.isin(erased)).count()
    return total


def _holds_any(text: F.Column, words: list[str]) -> F.Column:
    return F.exists(F.array(*(F.lit(word) for word in words)), lambda word: F.contains(text, word))
