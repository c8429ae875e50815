"""The only file that knows Delta: reads a table at a version, replaces a day, merges by key, appends to a log.

The contract of a table (`conf/tables.py`) becomes its schema, column comments, NOT NULL and CHECK constraints when the
table is first written. Nothing is appended blindly: a rerun of a day gives the same table. The table root is a folder
or URI, or `catalog:NAME` for tables of a metastore.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date

from delta import exceptions as dx
from delta.tables import DeltaTable
from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf import releases
from conf.errors import ConflictingWriteError, ContractViolatedError, DuplicateKeyError, MissingInputError
from conf.settings import CATALOG_PREFIX
from conf.tables import TABLES, TableContract
from etl.delta.contracts import (
    TABLE_PROPERTIES,
    as_field,
    check_constraints,
    conform,
    digest_table,
    loosen_schema,
)

CONSTRAINT = "delta.constraints."
"""What the name of a CHECK constraint becomes as a property of its table."""
ATTEMPTS = 5
"""Commits without rows are tried so often, if other runs commit at the same moment."""
_NIL, _MANUAL_UPDATE = (
    "scala.collection.immutable.Nil$",
    "org.apache.spark.sql.delta.DeltaOperations$ManualUpdate$",
)
PAGE_ROWS = "parquet.page.row.count.limit"
LAST_COMMIT = "spark.databricks.delta.lastCommitVersionInSession"
"""Set by Delta after every commit of the session; asking the table's history instead takes a Spark job."""
_CONFLICTS = (  # of other runs that committed first; Delta's Python classes have no common base
    dx.DeltaConcurrentModificationException, dx.ConcurrentWriteException, dx.ConcurrentAppendException,
    dx.ConcurrentDeleteReadException, dx.ConcurrentDeleteDeleteException, dx.ConcurrentTransactionException,
    dx.MetadataChangedException, dx.ProtocolChangedException,
)  # fmt: skip
_VIOLATION = re.compile(r"(CHECK|NOT NULL) constraint [^\n]{1,400}", re.IGNORECASE)
"""How Delta words a row that breaks a constraint; the rest of its message is a stack trace."""


# --- reading ----------------------------------------------------------------------------------------------------------


def table_location(root: str, name: str) -> str:
    """Returns the name that a Delta reader takes: a path, or `catalog.table` for a root of the form `catalog:NAME`.

    A relative folder is made absolute: Delta would take `warehouse/raw_pois` for the name of a table.
    """
    if root.startswith(CATALOG_PREFIX):
        return f"{root.removeprefix(CATALOG_PREFIX)}.{name}"
    return releases.table_location(root, name)


def table_exists(spark: SparkSession, root: str, name: str) -> bool:
    """Tells whether the table has been written."""
    location = table_location(root, name)
    if root.startswith(CATALOG_PREFIX):
        return spark.catalog.tableExists(location)
    return DeltaTable.isDeltaTable(spark, location)


def table_version(spark: SparkSession, root: str, name: str) -> int:
    """Returns the latest version of the table; MissingInputError if there is none."""
    _require(spark, root, name)
    none = spark._jvm.scala.Option.empty()  # type: ignore[union-attr]
    # Delta's Python API offers this only through the history, which takes a Spark job.
    return int(_delta_table(spark, root, name)._jdt.deltaLog().update(False, none, none).version())


def table_history(spark: SparkSession, root: str, name: str) -> DataFrame:
    """Returns the commits of a table that its log still holds: `version`, `userMetadata` and more."""
    _require(spark, root, name)
    return _delta_table(spark, root, name).history()


def read_table(spark: SparkSession, root: str, name: str, *, version: int | None = None) -> DataFrame:
    """Reads a table, at its latest version unless one is given.

    A nullable column of the contract that an older table lacks is read as null.

    Raises:
        MissingInputError: the table has never been written.
    """
    _require(spark, root, name)
    options = {} if version is None else {"versionAsOf": version}
    reader = spark.read.format("delta").options(**options)
    location = table_location(root, name)
    frame = reader.table(location) if root.startswith(CATALOG_PREFIX) else reader.load(location)
    known = {known.lower() for known in frame.columns}
    missing = [column for column in TABLES[name].columns if column.nullable and column.name not in known]
    return frame.withColumns({column.name: F.lit(None).cast(column.type) for column in missing})


# --- writing ----------------------------------------------------------------------------------------------------------


def replace_day(
    frame: DataFrame,
    name: str,
    root: str,
    *,
    day: date,
    run_id: str,
    job: str,
    where: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> int:
    """Replaces the rows of one day by `frame` in one commit and returns the new version.

    Args:
        frame: the rows of the day, with the contract's columns in any order; `day` may be absent.
        name: table of the contract, written by day.
        root: table root.
        day: the job's day; every row gets it.
        run_id: kept in the commit, not in the rows.
        job: kept in the commit.
        where: condition on the rows that are replaced, which every row of `frame` must match; for tables that several
            jobs write.
        metadata: further facts for the commit's metadata (`etl/delta/commits.py`).

    Raises:
        SchemaError: a column of the contract is missing.
        ConflictingWriteError: another run replaced the same day at the same time.
    """
    only = f"day = DATE'{day}'" + (f" AND ({where})" if where else "")
    commit = _commit_metadata(job, day, run_id, metadata)
    return _replace_where(
        frame.withColumn("day", F.lit(day)), name, root, day=day, only=only, metadata=commit
    )


def replace_days(
    frame: DataFrame, name: str, root: str, *, first_day: date, day: date, run_id: str, job: str, where: str
) -> int:
    """Replaces the rows of several days that match a condition by `frame` in one commit and returns the new version.

    Args:
        frame: the rows, with the contract's columns in any order; their days lie between `first_day` and `day`.
        name: table of the contract, written by day.
        root: table root.
        first_day: first of the days.
        day: the job's day, the last of them.
        run_id: kept in the commit, not in the rows.
        job: kept in the commit.
        where: condition that every row of `frame` matches.

    Raises:
        SchemaError: a column of the contract is missing.
        ConflictingWriteError: another run replaced such rows at the same time.
    """
    # Not BETWEEN: Delta reads the condition before Spark has rewritten it as two comparisons.
    only = f"day >= DATE'{first_day}' AND day <= DATE'{day}' AND ({where})"
    return _replace_where(frame, name, root, day=day, only=only, metadata=_commit_metadata(job, day, run_id))


def merge_rows(
    frame: DataFrame,
    name: str,
    root: str,
    *,
    run_id: str,
    job: str,
    day: date,
    delete_where: str | None = None,
) -> int:
    """Updates and inserts by the contract's key in one commit and returns the new version.

    Args:
        frame: the changed rows, at most one per key.
        name: table of the contract, written by merge.
        root: table root.
        run_id: kept in the commit.
        job: kept in the commit.
        day: the job's day.
        delete_where: condition on `target`; rows of the table that match it and have no row in `frame` are deleted.
            A rerun uses it for rows that the run before it may have added.

    Raises:
        DuplicateKeyError: a key occurs twice in `frame`.
    """
    contract = TABLES[name]
    assert contract.write == "merge", f"{name} is not written by merge"
    spark = frame.sparkSession
    rows = conform(frame, contract)
    _refuse_duplicate_keys(rows, contract)
    create_if_missing(spark, contract, root)
    condition = " AND ".join(f"target.{key} = source.{key}" for key in contract.key)
    # Null-safe: `=` is null where a value changes from or to null, and the row would never be updated.
    changed = " OR ".join(f"NOT (target.{c} <=> source.{c})" for c in contract.business_columns)
    merge = (
        _delta_table(spark, root, name)
        .alias("target")
        .merge(rows.alias("source"), condition)
        .whenMatchedUpdateAll(changed)
        .whenNotMatchedInsertAll()
    )
    if delete_where is not None:
        merge = merge.whenNotMatchedBySourceDelete(delete_where)
    metadata = _commit_metadata(job, day, run_id)
    return _with_commit_metadata(spark, metadata, lambda: _commit(spark, merge.execute, root, name, day))


def append_log(frame: DataFrame, name: str, root: str, *, run_id: str, job: str, day: date) -> int:
    """Appends rows with new keys to a log table and returns the new version.

    A retry of the same run finds its rows in the table, equal in every column, and appends nothing. A key that the
    table holds with other content is refused, never skipped.

    Raises:
        DuplicateKeyError: the table holds a key with other content, or a key occurs twice.
        ConflictingWriteError: another run appended at the same time.
    """
    contract = TABLES[name]
    assert contract.write == "log", f"{name} is not a log"
    spark, key = frame.sparkSession, list(contract.key)
    rows = conform(frame.withColumn("run_id", F.lit(run_id)), contract)
    create_if_missing(spark, contract, root)
    stored = read_table(spark, root, name).select(*rows.columns)
    if not _has_only_new_keys(rows, stored, contract):
        known = rows.join(stored, key, "left_semi")
        same_run = stored.where(F.col("run_id") == run_id).join(rows.select(*key), key, "left_semi")
        if digest_table(same_run, contract) == digest_table(rows, contract):
            return table_version(spark, root, name)
        _refuse_duplicate_keys(rows.unionByName(known), contract)
    # The write itself reads the table, so Delta sees a conflict if another run appends between the two.
    new = rows.join(read_table(spark, root, name).select(*key), key, "left_anti").select(*rows.columns)
    writer = (
        new.write.format("delta").mode("append").option("userMetadata", _commit_metadata(job, day, run_id))
    )
    location = table_location(root, name)
    save = writer.saveAsTable if root.startswith(CATALOG_PREFIX) else writer.save
    version = _commit(spark, lambda: save(location), root, name, day)
    # The anti-join above leaves out keys that another run took since the check; then our rows are missing.
    if not rows.join(read_table(spark, root, name), [*key, "run_id"], "left_anti").isEmpty():
        raise ConflictingWriteError(table=name, day=str(day), cause="the keys were taken meanwhile")
    return version


# --- private ----------------------------------------------------------------------------------------------------------


def _replace_where(frame: DataFrame, name: str, root: str, *, day: date, only: str, metadata: str) -> int:
    contract = TABLES[name]
    assert contract.write == "day", f"{name} is not written by day"
    rows = conform(frame, contract)
    create_if_missing(frame.sparkSession, contract, root)
    if contract.cluster_by:
        rows = rows.sortWithinPartitions(*contract.cluster_by)
    writer = rows.write.format("delta").mode("overwrite").option("replaceWhere", only)
    location = table_location(root, name)
    save = writer.option("userMetadata", metadata)
    write = save.saveAsTable if root.startswith(CATALOG_PREFIX) else save.save
    with _limited_pages(frame.sparkSession, contract.page_rows):
        return _commit(frame.sparkSession, lambda: write(location), root, name, day)


@contextlib.contextmanager
def _limited_pages(spark: SparkSession, rows: int) -> Iterator[None]:
    """Limits the rows of the Parquet pages that are written meanwhile; Delta takes no such option of a write.

    A reader of a few users skips the other pages of a sorted file: 48 of 171,428 users took half the time with pages of
    1,000 rows, and the table grew by 1 %.
    """
    if not rows:
        yield
        return
    spark.conf.set(PAGE_ROWS, str(rows))
    try:
        yield
    finally:
        spark.conf.unset(PAGE_ROWS)


def _delta_table(spark: SparkSession, root: str, name: str) -> DeltaTable:
    find = DeltaTable.forName if root.startswith(CATALOG_PREFIX) else DeltaTable.forPath
    return find(spark, table_location(root, name))


def create_if_missing(spark: SparkSession, contract: TableContract, root: str) -> None:
    """Creates an empty table from its contract; an existing table is brought up to it (`update_table`)."""
    if table_exists(spark, root, contract.name):
        update_table(spark, contract, root)
        return
    location = table_location(root, contract.name)
    builder = DeltaTable.createIfNotExists(spark).comment(contract.grain)
    builder = (builder.tableName if root.startswith(CATALOG_PREFIX) else builder.location)(location)
    for column in contract.columns:
        field = as_field(column, contract)
        builder = builder.addColumn(column.name, field.dataType, nullable=column.nullable, comment=column.doc)
    if contract.partition_by:
        builder = builder.partitionedBy(*contract.partition_by)
    for constraint, condition in check_constraints(contract).items():
        builder = builder.property(f"{CONSTRAINT}{constraint}", condition)
    for key, value in TABLE_PROPERTIES.items():
        builder = builder.property(key, value)
    # Another run may create the table at this moment, from the same contract: then it exists.
    with contextlib.suppress(*_CONFLICTS):
        builder.execute()


def update_table(spark: SparkSession, contract: TableContract, root: str) -> None:
    """Brings a table of an earlier contract up to the present one, in one commit without rows.

    Nullable columns are added. NOT NULL (of columns and of array elements) and our CHECK constraints are dropped where
    the contract no longer has them. Nothing is tightened, and changes by users of the table are left alone. Usually
    nothing has changed, and then the cost is one look at the log.

    Raises:
        ConflictingWriteError: other runs kept committing meanwhile.
    """
    for attempt in range(ATTEMPTS):
        log = _delta_table(spark, root, contract.name)._jdt.deltaLog()
        none = spark._jvm.scala.Option.empty()  # type: ignore[union-attr]
        metadata = log.update(False, none, none).metadata()
        schema = StructType.fromJson(json.loads(metadata.schemaString()))
        loosened, dropped = loosen_schema(schema, contract), _dropped_constraints(spark, metadata, contract)
        if loosened == schema and not dropped:
            return
        # No SQL command does this: ALTER TABLE cannot make array elements nullable, and takes one commit per column.
        transaction = log.startTransaction(none, none)
        transaction.updateMetadata(_with_schema(metadata, loosened, dropped), False)
        try:
            transaction.commit(
                _scala(spark, _NIL), _scala(spark, _MANUAL_UPDATE), metadata.configuration().empty()
            )
            return
        except Py4JJavaError as error:
            if "oncurrent" not in str(error.java_exception) and "MetadataChanged" not in str(
                error.java_exception
            ):
                raise
            if attempt + 1 == ATTEMPTS:
                raise ConflictingWriteError(
                    table=contract.name, day="any day", cause="its columns were changed meanwhile"
                ) from error


def _dropped_constraints(spark: SparkSession, metadata: JavaObject, contract: TableContract) -> list[str]:
    """Returns the properties of CHECK constraints that an earlier contract had and this one no longer has."""
    properties = spark._jvm.scala.jdk.javaapi.CollectionConverters.asJava(metadata.configuration())  # type: ignore[union-attr]
    ours = {f"{column.name}_{kind}" for column in contract.columns for kind in ("range", "known", "lengths")}
    return [
        name
        for name in properties
        if name.startswith(CONSTRAINT)
        and name.removeprefix(CONSTRAINT) in ours - check_constraints(contract).keys()
    ]


def _with_schema(metadata: JavaObject, schema: StructType, dropped: list[str]) -> JavaObject:
    """Returns the metadata of a table with another schema and without some properties."""
    properties = metadata.configuration()
    for name in dropped:
        properties = properties.removed(name)
    return metadata.copy(
        metadata.id(), metadata.name(), metadata.description(), metadata.format(), schema.json(),
        metadata.partitionColumns(), properties, metadata.createdTime(),
    )  # fmt: skip


def _scala(spark: SparkSession, name: str) -> JavaObject:
    """Returns an object of Scala."""
    return getattr(getattr(spark._jvm, name), "MODULE$")


def _has_only_new_keys(rows: DataFrame, stored: DataFrame, contract: TableContract) -> bool:
    """Tells in one query whether there are rows, and each key occurs once and is not yet in the table."""
    key = list(contract.key)
    keys = rows.groupBy(*key).count().join(stored.select(*key, F.lit(1).alias("is_stored")), key, "left")
    counts = keys.agg(F.max("count").alias("most"), F.count("is_stored").alias("num_stored")).first()
    return counts is not None and counts["most"] == 1 and not counts["num_stored"]


def _refuse_duplicate_keys(rows: DataFrame, contract: TableContract) -> None:
    twice = rows.groupBy(*contract.key).count().where("count > 1")
    example = twice.agg(
        F.count("*").alias("n"), F.first(F.to_json(F.struct(*contract.key))).alias("key")
    ).first()
    assert example is not None
    if example["n"]:
        raise DuplicateKeyError(
            table=contract.name, key=contract.key, example=example["key"], num_keys=example["n"]
        )


def _require(spark: SparkSession, root: str, name: str) -> None:
    if not table_exists(spark, root, name):
        raise MissingInputError(
            what=f"table {name}",
            where=table_location(root, name),
            needed_by="The job",
            remedy="Run the job that writes it first (python -m etl --help lists them), or check storage.root.",
        )


def _commit_metadata(job: str, day: date, run_id: str, metadata: Mapping[str, object] | None = None) -> str:
    return json.dumps({"job": job, "day": str(day), "run_id": run_id, **(metadata or {})})


def _with_commit_metadata(spark: SparkSession, metadata: str, write: Callable[[], int]) -> int:
    """Runs a write whose API takes no option: Delta then reads the metadata from the session."""
    key = "spark.databricks.delta.commitInfo.userMetadata"
    spark.conf.set(key, metadata)
    try:
        return write()
    finally:
        spark.conf.unset(key)


def _commit(spark: SparkSession, write: Callable[[], object], root: str, name: str, day: date) -> int:
    """Runs a write and returns the table's version after it."""
    # Otherwise a write that commits nothing would return the version of an earlier commit, maybe of another table.
    spark.conf.unset(LAST_COMMIT)
    try:
        write()
    except _CONFLICTS as error:
        raise ConflictingWriteError(table=name, day=str(day), cause=type(error).__name__) from error
    except (PySparkException, Py4JJavaError) as error:
        violation = _VIOLATION.search(str(error))
        if violation is None:
            raise
        raise ContractViolatedError(table=name, day=str(day), violation=violation.group(0)) from error
    version = spark.conf.get(LAST_COMMIT, None)
    # A merge that changed nothing commits nothing.
    return table_version(spark, root, name) if version is None else int(version)
