"""Tries to publish feature tables that do not belong together, in every way that we know, and counts the refusals.

    python -m tests.bench.skewed_publishes

In a town of eight POIs: every assignment of two models to the four feature tables but the two pure ones; rows of
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
from tests.udfs.town import DAY_1, DAY_2, Town, action, make_bundle, open_town, sequence
from udfs.releases.audit_record import load_audit, save_audit
from udfs.releases.release_log import load_releases

COMMAND = "make bench-skew"
REFUSALS = (ReleaseSkewError, AuditMissingError)
Attempt = tuple[str, Callable[[Town], None]]
"""What is wrong, and what makes it so in a town whose pure night was computed and audited."""


def rewrite(town: Town, **changes: object) -> None:
    """Writes the day's rows of all feature tables again, with columns changed."""
    for name in FEATURE_TABLES:
        rows = read_table(town.spark, town.root, name).where(F.col("day") == F.lit(DAY_1))
        for column, value in changes.items():
            rows = rows.withColumn(column, F.lit(value))
        replace_day(rows, name, town.root, day=DAY_1, run_id="skew", job=name)


def take_tables(names: Sequence[str], source: Town, *, is_forged: bool = True) -> Callable[[Town], None]:
    """Returns what puts tables of another town in the place of a town's own."""

    def spoil(town: Town) -> None:
        for name in names:
            shutil.rmtree(Path(town.root) / name)
            shutil.copytree(Path(source.root) / name, Path(town.root) / name)
        if is_forged:
            forge_audit(town)

    return spoil


def forge_audit(town: Town, *, day: date = DAY_1, **changes: object) -> None:
    """Makes the record of a day say passed for the tables as they are now; that of DAY_1 is what it starts from."""
    audit = load_audit(str(town.artifacts), DAY_1)
    assert audit is not None
    now = {name: table_version(town.spark, town.root, name) for name in FEATURE_TABLES}
    content = asdict(audit) | {"day": str(day), "is_passed": True, "failures": []}
    content |= {"table_versions": audit.table_versions | now}
    save_audit(type(audit)(**content | changes), str(town.artifacts))


def attempts(other: Town, shifted: Town, again: Town) -> Iterator[Attempt]:
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
    yield "the audit failed", lambda town: forge_audit(town, is_passed=False, failures=["something"])
    yield "never audited", lambda town: (town.artifacts / "audits" / f"{DAY_1}.json").unlink()
    yield "the audit tells another model", lambda town: forge_audit(town, model_version="another")
    yield "the audit tells another index", lambda town: forge_audit(town, index_version=7)
    yield "the audit is of another day", copy_record


def copy_record(town: Town) -> None:
    """Puts the record of another day in the place of this one's."""
    path = town.artifacts / "audits" / f"{DAY_1}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"day": str(DAY_2)}))


def second_night_of_users(town: Town, model: Path) -> None:
    """Publishes the pure night, then makes vectors of a second night for users alone, by another model."""
    town.run("publish", DAY_1)
    town.deliver(
        DAY_2, cleaned_actions=[action("a2", "u2", DAY_2, 4)], action_sequences=[sequence("u2", DAY_2, [4])],
        ranking_requests=[],
    )  # fmt: skip
    town.run("user_embeddings", DAY_2, model=str(model))
    forge_audit(town, day=DAY_2)


def is_refused(town: Town, day: date = DAY_1) -> bool:
    """Tries to publish; true if it is refused and readers see what they saw."""
    before = len(load_releases(town.spark, town.root))
    try:
        town.run("publish", day)
    except REFUSALS as error:
        print(f"  {type(error).__name__}: {str(error)[:110]}")
        return len(load_releases(town.spark, town.root)) == before
    return False


class Towns:
    """Makes towns in a folder, all with the same first night."""

    def __init__(self, work: Path) -> None:
        settings = Settings(
            spark=SparkSettings(driver_memory="1g", shuffle_partitions=1, quick_start=True,
                                conf={"spark.python.daemon.module": "udfs.worker_daemon"}),
            features=FeatureSettings(top_k=3, micro_batch=4, max_failed_share=0.5),
        )  # fmt: skip
        self.work, self.settings = work, settings
        self.spark = open_session(settings, "skewed publishes")
        self.model, self.other_model = (make_bundle(work / f"model{seed}", seed=seed) for seed in (1, 2))

    def compute(self, name: str, model: Path) -> Town:
        """Returns a town whose first night was computed with a model."""
        town = open_town(self.spark, self.settings, self.work / name, model)
        town.deliver_first_night()
        town.run("features", DAY_1)
        return town

    def copy(self, name: str) -> Town:
        """Returns a copy of the town `pure`."""
        folder = Path(shutil.copytree(self.work / "pure", self.work / name))
        return open_town(self.spark, self.settings, folder, self.model)


def try_everything(towns: Towns) -> tuple[dict[str, bool], bool]:
    """Returns by attempt whether it was refused, and whether the pure night is."""
    pure, other = towns.compute("pure", towns.model), towns.compute("other", towns.other_model)
    pure.run("audit", DAY_1)
    shifted, again = towns.copy("shifted"), towns.copy("again")
    rewrite(shifted, index_version=2)
    rewrite(again)
    refused = {}
    for number, (name, spoil) in enumerate(attempts(other, shifted, again)):
        town = towns.copy(f"try{number}")
        spoil(town)
        refused[name] = is_refused(town)
        print(f"{'refused' if refused[name] else 'LET THROUGH'}: {name}", flush=True)
    second = towns.copy("second")
    second_night_of_users(second, towns.other_model)
    refused["a second night of users alone by another model"] = is_refused(second, DAY_2)
    forge_audit(pure)
    return refused, is_refused(pure)


def main() -> int:
    """Makes the towns, tries everything, records, and returns 0 if all was refused."""
    parser = argparse.ArgumentParser(
        description="Records the share of mixed releases that is refused in results/."
    )
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skew-") as work:
        towns = Towns(Path(work))
        refused, is_pure_refused = try_everything(towns)
        towns.spark.stop()
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
