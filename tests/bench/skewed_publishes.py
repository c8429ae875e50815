"""Tries to publish feature tables that do not belong together, in every way that we know, and counts the refusals.

    python -m tests.bench.skewed_publishes

In a city of eight POIs: every assignment of two models to the four feature tables but the two pure ones; rows of
another index version in each table; vectors of users alone by a new model on a second night; each table written again
after the audit; an audit that failed, is of another day, or tells another model or index. Where the rows are wrong,
`publish` is handed a forged record that says passed for exactly these versions: so it has to see the mixture itself,
without the audit. A pure night is published with such a record, as the control.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from pyspark.sql import functions as F

from conf.errors import AuditMissingError, ReleaseSkewError
from conf.results import record
from conf.settings import FeatureSettings, Settings, SparkSettings
from conf.tables import FEATURE_TABLES
from etl.delta.storage import read_table, replace_day, table_version
from etl.spark.session import open_session
from tests.udfs.feature_city import DAY_1, DAY_2, FeatureCity, action, make_bundle, open_city, sequence
from udfs.releases.audit_record import load_audit, save_audit
from udfs.releases.release_log import load_releases

COMMAND = "make bench-skew"
REFUSALS = (ReleaseSkewError, AuditMissingError)
Attempt = tuple[str, Callable[[FeatureCity], None]]
"""What is wrong, and what makes it so in a city whose pure night was computed and audited."""


def rewrite(city: FeatureCity, **changes: object) -> None:
    """Writes the day's rows of all feature tables again, with columns changed."""
    for name in FEATURE_TABLES:
        rows = read_table(city.spark, city.root, name).where(F.col("day") == F.lit(DAY_1))
        for column, value in changes.items():
            rows = rows.withColumn(column, F.lit(value))
        replace_day(rows, name, city.root, day=DAY_1, run_id="skew", job=name)


def take_tables(
    names: Sequence[str], source: FeatureCity, *, is_forged: bool = True
) -> Callable[[FeatureCity], None]:
    """Returns what puts tables of another city in the place of a city's own."""

    def spoil(city: FeatureCity) -> None:
        for name in names:
            shutil.rmtree(Path(city.root) / name)
            shutil.copytree(Path(source.root) / name, Path(city.root) / name)
        if is_forged:
            forge_audit(city)

    return spoil


def forge_audit(city: FeatureCity, *, day: date = DAY_1, **changes: object) -> None:
    """Makes the record of a day say passed for the tables as they are now; that of DAY_1 is what it starts from."""
    audit = load_audit(str(city.artifacts), DAY_1)
    assert audit is not None
    now = {name: table_version(city.spark, city.root, name) for name in FEATURE_TABLES}
    content = asdict(audit) | {"day": str(day), "is_passed": True, "failures": []}
    content |= {"table_versions": audit.table_versions | now}
    save_audit(type(audit)(**content | changes), str(city.artifacts))


def attempts(other: FeatureCity, shifted: FeatureCity, again: FeatureCity) -> Iterator[Attempt]:
    """Lists what is tried.

    Args:
        other: the same night by another model.
        shifted: the same night with another index version in every row.
        again: the same night, each table written once more.
    """
    for chosen in itertools.product((False, True), repeat=len(FEATURE_TABLES)):
        names = [name for name, is_other in zip(FEATURE_TABLES, chosen, strict=True) if is_other]
        if 0 < len(names) < len(FEATURE_TABLES):
            yield f"{', '.join(names)} by another model", take_tables(names, other)
    for name in FEATURE_TABLES:
        yield f"{name} on another index version", take_tables([name], shifted)
        yield f"{name} written again after the audit", take_tables([name], again, is_forged=False)
    yield "the audit failed", lambda city: forge_audit(city, is_passed=False, failures=["something"])
    yield "never audited", lambda city: (city.artifacts / "audits" / f"{DAY_1}.json").unlink()
    yield "the audit tells another model", lambda city: forge_audit(city, model_version="another")
    yield "the audit tells another index", lambda city: forge_audit(city, index_version=7)
    yield "the audit is of another day", copy_record


def copy_record(city: FeatureCity) -> None:
    """Puts the record of another day in the place of this one's."""
    path = city.artifacts / "audits" / f"{DAY_1}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"day": str(DAY_2)}))


def second_night_of_users(city: FeatureCity, model: Path) -> None:
    """Publishes the pure night, then makes vectors of a second night for users alone, by another model."""
    city.run("publish", DAY_1)
    city.deliver(
        DAY_2, cleaned_actions=[action("a2", "u2", DAY_2, 4)], action_sequences=[sequence("u2", DAY_2, [4])],
        ranking_requests=[],
    )  # fmt: skip
    city.run("user_embeddings", DAY_2, model=str(model))
    forge_audit(city, day=DAY_2)


def is_refused(city: FeatureCity, day: date = DAY_1) -> bool:
    """Tries to publish; true if it is refused and readers see what they saw."""
    before = len(load_releases(city.spark, city.root))
    try:
        city.run("publish", day)
    except REFUSALS as error:
        print(f"  {type(error).__name__}: {str(error)[:110]}")
        return len(load_releases(city.spark, city.root)) == before
    return False


class Cities:
    """Makes cities in a folder, all with the same first night."""

    def __init__(self, work: Path) -> None:
        settings = Settings(
            spark=SparkSettings(driver_memory="1g", shuffle_partitions=1, quick_start=True,
                                conf={"spark.python.daemon.module": "udfs.worker_daemon"}),
            features=FeatureSettings(top_k=3, micro_batch=4, max_failed_share=0.5),
        )  # fmt: skip
        self.work, self.settings = work, settings
        self.spark = open_session(settings, "skewed publishes")
        self.model, self.other_model = (make_bundle(work / f"model{seed}", seed=seed) for seed in (1, 2))

    def compute(self, name: str, model: Path) -> FeatureCity:
        """Returns a city whose first night was computed with a model."""
        city = open_city(self.spark, self.settings, self.work / name, model)
        city.deliver_first_night()
        city.run("features", DAY_1)
        return city

    def copy(self, name: str) -> FeatureCity:
        """Returns a copy of the city `pure`."""
        folder = Path(shutil.copytree(self.work / "pure", self.work / name))
        return open_city(self.spark, self.settings, folder, self.model)


def try_everything(cities: Cities) -> tuple[dict[str, bool], bool]:
    """Returns by attempt whether it was refused, and whether the pure night is."""
    pure, other = cities.compute("pure", cities.model), cities.compute("other", cities.other_model)
    pure.run("audit", DAY_1)
    shifted, again = cities.copy("shifted"), cities.copy("again")
    rewrite(shifted, index_version=2)
    rewrite(again)
    refused = {}
    for number, (name, spoil) in enumerate(attempts(other, shifted, again)):
        city = cities.copy(f"try{number}")
        spoil(city)
        refused[name] = is_refused(city)
        print(f"{'refused' if refused[name] else 'LET THROUGH'}: {name}", flush=True)
    second = cities.copy("second")
    second_night_of_users(second, cities.other_model)
    refused["a second night of users alone by another model"] = is_refused(second, DAY_2)
    forge_audit(pure)
    return refused, is_refused(pure)


def main() -> int:
    """Makes the cities, tries everything, records, and returns 0 if all was refused."""
    parser = argparse.ArgumentParser(
        description="Records the share of mixed releases that is refused in results/."
    )
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skew-") as work:
        cities = Cities(Path(work))
        refused, is_pure_refused = try_everything(cities)
        cities.spark.stop()
    share = 0.0 if is_pure_refused else sum(refused.values()) / len(refused)
    let_through = [name for name, is_good in refused.items() if not is_good]
    notes = (
        f"{len(refused)} attempts, those with wrong rows with an audit record forged to say passed; let through: "
        f"{'; '.join(let_through) or 'none'}; the pure night is {'REFUSED' if is_pure_refused else 'published'}"
    )
    record("skew-publishes-refused", share, "share of attempts", "== 1", COMMAND, notes, options.results)
    print(notes)
    return 0 if share == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
