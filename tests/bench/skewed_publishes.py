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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from pyspark.sql import functions as F

from conf.errors import AuditMissingError, ReleaseSkewError
from conf.results import record
from conf.settings import FeatureSettings, Settings, SparkSettings
from conf.tables import FEATURE_TABLES
from etl.session import open_session
from etl.storage import read_table, replace_day, table_version
from tests.udfs.conftest import make_bundle, open_town
from tests.udfs.town import DAY_1, DAY_2, Town, action, sequence
from udfs.audit_record import load_audit, save_audit
from udfs.release_log import load_releases

COMMAND = "make bench-skew"
REFUSALS = (ReleaseSkewError, AuditMissingError)
Attempt = tuple[str, Callable[[Town], None]]
"""What is wrong, and what makes it so in a town whose pure night was computed and audited."""


def write_rows(town: Town, name: str, source: Town, **changes: object) -> None:
    """Replaces the day's rows of a feature table by those of another town, with columns changed."""
    rows = read_table(town.spark, source.root, name).where(F.col("day") == F.lit(DAY_1))
    for column, value in changes.items():
        rows = rows.withColumn(column, F.lit(value))
    replace_day(rows, name, town.root, day=DAY_1, run_id="skew", job=name)


def forge_audit(town: Town, **changes: object) -> None:
    """Makes the day's record say passed for the tables as they are now."""
    audit = load_audit(str(town.artifacts), DAY_1)
    assert audit is not None
    now = {name: table_version(town.spark, town.root, name) for name in FEATURE_TABLES}
    content = asdict(audit) | {
        "is_passed": True,
        "failures": [],
        "table_versions": audit.table_versions | now,
    }
    save_audit(type(audit)(**content | changes), str(town.artifacts))


def attempts(other: Town) -> Iterator[Attempt]:
    """Lists what is tried; `other` holds the same night by another model."""
    for chosen in itertools.product((False, True), repeat=len(FEATURE_TABLES)):
        names = [name for name, is_other in zip(FEATURE_TABLES, chosen, strict=True) if is_other]
        if 0 < len(names) < len(FEATURE_TABLES):
            yield f"{', '.join(names)} by another model", mix_models(other, names)
    for name in FEATURE_TABLES:
        yield f"{name} on another index version", change_index(name)
        yield f"{name} written again after the audit", write_again(name)
    yield "the audit failed", lambda town: forge_audit(town, is_passed=False, failures=["something"])
    yield "never audited", lambda town: (town.artifacts / "audits" / f"{DAY_1}.json").unlink()
    yield "the audit tells another model", lambda town: forge_audit(town, model_version="another")
    yield "the audit tells another index", lambda town: forge_audit(town, index_version=7)
    yield "the audit is of another day", copy_record


def mix_models(other: Town, names: list[str]) -> Callable[[Town], None]:
    def spoil(town: Town) -> None:
        for name in names:
            write_rows(town, name, other)
        forge_audit(town)

    return spoil


def change_index(name: str) -> Callable[[Town], None]:
    def spoil(town: Town) -> None:
        write_rows(town, name, town, index_version=2)
        forge_audit(town)

    return spoil


def write_again(name: str) -> Callable[[Town], None]:
    return lambda town: write_rows(town, name, town)


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


def is_refused(town: Town, day: object = DAY_1) -> bool:
    """Tries to publish; true if it is refused and readers see what they saw."""
    before = len(load_releases(town.spark, town.root))
    try:
        town.run("publish", day)
    except REFUSALS as error:
        print(f"  refused: {type(error).__name__}: {str(error)[:110]}")
        return len(load_releases(town.spark, town.root)) == before
    return False


def main() -> int:
    """Makes the towns, tries everything, records, and returns 0 if all was refused."""
    parser = argparse.ArgumentParser(
        description="Records the share of mixed releases that is refused in results/."
    )
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="skew-"))
    settings = Settings(
        spark=SparkSettings(driver_memory="1g", shuffle_partitions=1, quick_start=True,
                            conf={"spark.python.daemon.module": "udfs.worker_daemon"}),
        features=FeatureSettings(top_k=3, micro_batch=4, max_failed_share=0.5),
    )  # fmt: skip
    spark = open_session(settings, "skewed publishes")
    bundles = [make_bundle(work / f"model{seed}", seed=seed) for seed in (1, 2)]
    pure, other = (open_town(spark, settings, work / f"town{n}", bundle) for n, bundle in enumerate(bundles))
    for town in (pure, other):
        town.deliver_first_night()
        town.run("features", DAY_1)
        town.run("audit", DAY_1)
    refused = {}
    for number, (name, spoil) in enumerate(attempts(other)):
        shutil.copytree(work / "town0", work / f"try{number}")
        town = open_town(spark, settings, work / f"try{number}", bundles[0])
        print(name)
        spoil(town)
        refused[name] = is_refused(town)
    town = open_town(spark, settings, Path(shutil.copytree(work / "town0", work / "second")), bundles[0])
    second_night_of_users(town, bundles[1])
    record_path = town.artifacts / "audits"
    content = json.loads((record_path / f"{DAY_1}.json").read_text()) | {"day": str(DAY_2)}
    now = {name: table_version(spark, town.root, name) for name in FEATURE_TABLES}
    content |= {"table_versions": content["table_versions"] | now}
    (record_path / f"{DAY_2}.json").write_text(json.dumps(content))
    refused["a second night of users alone by another model"] = is_refused(town, DAY_2)
    forge_audit(pure)
    is_control_published = not is_refused(pure)
    share = sum(refused.values()) / len(refused)
    let_through = [name for name, is_good in refused.items() if not is_good]
    notes = (
        f"{len(refused)} attempts with an audit record forged to say passed where there is one; let through: "
        f"{'; '.join(let_through) or 'none'}; the pure night is {'published' if is_control_published else 'REFUSED'}"
    )
    record("skew-publishes-refused", share if is_control_published else 0.0, "share of attempts", "== 1",
           COMMAND, notes, options.results)  # fmt: skip
    print(notes)
    spark.stop()
    shutil.rmtree(work)
    return 0 if share == 1 and is_control_published else 1


if __name__ == "__main__":
    sys.exit(main())
