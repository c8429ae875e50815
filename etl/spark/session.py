"""One way to open a SparkSession: UTC, ANSI, Delta, quiet, local unless a master is given.

Delta's jars are resolved once by `python -m etl.setup.jars` (part of `make setup`) into `spark.ivy_dir`; every later
start takes them from there and needs no network.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
from pyspark import SparkContext, StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from conf.errors import LocaleError
from conf.settings import Settings, SparkSettings
from etl.spark.java import check_java, utf8_locale, without_module_warning

DELTA_COORDINATE = "io.delta:delta-spark_4.1_2.13:4.4.0"
"""Spark's minor version is part of the artefact's name; the pip wheel holds no jar."""
LOG4J_FILE = Path(__file__).parent / "log4j2.properties"
CLASS_ARCHIVE = "classes.jsa"
"""Beside the jars: Spark's and Delta's classes as the JVM wants them in memory (`etl/setup/class_archive.py`)."""
QUIET_ARCHIVE = "-Xlog:cds=off -Xlog:cds+dynamic=off -Xlog:class+path=off"
JVM_OPTIONS = f"-Dlog4j2.configurationFile={LOG4J_FILE}"
FULL_JVM_OPTIONS = "-XX:+UseParallelGC"
QUICK_JVM_OPTIONS = (
    "-XX:+UseSerialGC -XX:MetaspaceSize=400m -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
)
"""Small heaps, and the light compiler only: its default code cache (48 MB) would overflow, and the JVM interpret."""
QUICK_PROPERTIES = {
    # Compiling costs more than it saves on few rows.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
    "spark.databricks.delta.snapshotPartitions": "1",
    # Spark builds the plan's text for every query, though it is never read.
    "spark.sql.ui.explainMode": "simple",
    "spark.sql.debug.maxToStringFields": "1",
    # Recording the Python line of a column expression takes several calls into the JVM.
    "spark.python.sql.dataFrameDebugging.enabled": "false",
}
PARTS_OF_LARGE_SHUFFLES = 8
"""How many times `spark.shuffle_partitions` a shuffle is cut into before its size is known."""
JAR_PREFIXES = ("io.delta_", "io.unitycatalog_", "org.locationtech.jts_")
"""What Delta needs beyond the jars that Spark ships itself."""


def open_session(
    settings: Settings, app_name: str, properties: Mapping[str, str] = MappingProxyType({})
) -> SparkSession:
    """Opens the session of a job, or returns the one that is open.

    Args:
        settings: settings of Spark.
        app_name: name that the cluster shows.
        properties: Spark properties that this job needs beyond the settings.

    Raises:
        JavaMissingError: no Java runtime of a supported version was found.
        LocaleError: a path of the settings cannot be named in the locale of the JVM.
    """
    check_java()
    # Workers must run this interpreter; without it they may start another one that lacks our packages.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark_settings = settings.spark
    builder = SparkSession.builder.appName(app_name).master(spark_settings.master)
    for key, value in {**_properties(settings), **properties}.items():
        builder = builder.config(key, value)
    is_started = SparkContext._gateway is not None
    with utf8_locale(), nullcontext() if is_started else without_module_warning():
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    _check_paths(session, settings)
    return session


def compute_once(frame: DataFrame, level: StorageLevel = StorageLevel.MEMORY_AND_DISK) -> DataFrame:
    """Returns the same rows, computed when first used and then kept; for rows that are used more than once.

    Later plans start from the kept rows. With `persist`, Spark would analyse the whole plan again for every use, and
    plan it again for every write to a table that it reads. The rows are kept on the executors. Where executors come
    and go, set the property `spark.checkpoint.dir` to a folder of the cluster to keep them there.
    """
    if frame.sparkSession.sparkContext.getCheckpointDir() is not None:
        return frame.checkpoint(eager=False)
    return frame.localCheckpoint(eager=False, storageLevel=level)


def local_frame(spark: SparkSession, rows: Iterable[Sequence[object]], schema: StructType | str) -> DataFrame:
    """Creates a frame from a few rows (or none) that the driver holds.

    Through Arrow the frame is a local relation. `createDataFrame` of a list starts a Python worker for every use, half
    a second each, and hides from the optimizer that a frame is empty.

    Args:
        spark: session.
        rows: values in the order of the columns.
        schema: columns, as a type or in SQL words.

    Raises:
        ValueError: a column that is not nullable holds a null, which Spark would read as zero.
    """
    columns = StructType.fromDDL(schema) if isinstance(schema, str) else schema
    assert isinstance(columns, StructType)
    by_name = [dict(zip(columns.names, row, strict=True)) for row in rows]
    table = pa.Table.from_pylist(by_name, schema=to_arrow_schema(columns))
    wrong = [field.name for field in columns.fields if not field.nullable and table[field.name].null_count]
    if wrong:
        raise ValueError(f"null in {', '.join(wrong)}, which take none; give a value for every row")
    return spark.createDataFrame(table, columns)  # type: ignore[call-overload,no-any-return]


def delta_jars(ivy_dir: str | Path) -> list[Path]:
    """Returns the cached jars that a session needs for Delta, sorted; empty if they are not resolved yet."""
    folder = Path(ivy_dir) / "jars"
    jars = sorted(jar for jar in folder.glob("*.jar") if jar.name.startswith(JAR_PREFIXES))
    group, artifact, version = DELTA_COORDINATE.split(":")
    return jars if (folder / f"{group}_{artifact}-{version}.jar").is_file() else []


def class_archive(ivy_dir: str | Path) -> Path:
    """Returns the path of the class archive of the jars, whether or not it exists."""
    return Path(ivy_dir).absolute() / CLASS_ARCHIVE


def _check_paths(session: SparkSession, settings: Settings) -> None:
    """Checks that the JVM, which another program may have started, can name the files of the settings."""
    paths = {
        "source.path": settings.source.path,
        "source.pois_path": settings.source.pois_path,
        "storage.root": settings.storage.root,
    }
    beyond_ascii = {key: path for key, path in paths.items() if not path.isascii()}
    if not beyond_ascii:
        return
    java = session.sparkContext._jvm
    assert java is not None, "the session runs in a JVM"
    encoding = str(java.java.lang.System.getProperty("sun.jnu.encoding"))
    encoder = java.java.nio.charset.Charset.forName(encoding).newEncoder()
    for key, path in beyond_ascii.items():
        if not encoder.canEncode(path):
            raise LocaleError(key=key, path=path, encoding=encoding)


def _properties(settings: Settings) -> dict[str, str]:
    spark_settings = settings.spark
    local = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    return {
        **_jar_properties(spark_settings),
        **(local if spark_settings.master.startswith("local") else {}),
        "spark.jars.ivy": str(Path(spark_settings.ivy_dir).absolute()),
        "spark.driver.memory": spark_settings.driver_memory,
        "spark.driver.extraJavaOptions": _java_options(spark_settings),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.shuffle.partitions": str(spark_settings.shuffle_partitions),
        # Large shuffles stay in this many parts, which fit into memory; small parts are merged as they are read.
        # 2 * 10^7 actions in 4 parts spilled 3 GB at each of three sorts, in 16 or 32 nothing, and took 8 % less time.
        "spark.sql.adaptive.coalescePartitions.initialPartitionNum": str(
            PARTS_OF_LARGE_SHUFFLES * spark_settings.shuffle_partitions
        ),
        # A run compiles more than 100 expressions (the default) and uses many of them again.
        "spark.sql.codegen.cache.maxEntries": "1000",
        # HotSpot interprets methods above 8,000 bytes; Spark then generates smaller ones instead of one per stage.
        "spark.sql.codegen.hugeMethodLimit": "8000",
        # Rows that come sorted by their key are aggregated as they come. Collecting in a hash table, Spark sorts them
        # again beyond 128 keys, and that sort gives no memory back to the window before it: 5 * 10^7 actions ran out.
        "spark.sql.execution.replaceHashWithSortAgg": "true",
        "spark.databricks.delta.snapshotPartitions": str(_log_partitions(spark_settings)),
        "spark.databricks.delta.schema.autoMerge.enabled": "false",
        # An index of half a million POIs is broadcast, which saves the shuffle and sort of the actions.
        "spark.sql.autoBroadcastJoinThreshold": "32m",
        # Names of partition folders are text: user_id=007 is no number.
        "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": str(spark_settings.shuffle_partitions),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.structuredLogging.enabled": "false",
        **(QUICK_PROPERTIES if spark_settings.quick_start else {}),
        **spark_settings.conf,
    }


def _log_partitions(spark_settings: SparkSettings) -> int:
    """Returns the number of tasks for replaying a Delta log; a job replays about ten, by default with 50 tasks each.

    On one machine a table has some thousand files, which one task can list: 16 tasks took half of a run's time.
    """
    is_local = spark_settings.master.startswith("local")
    return 1 if is_local else min(spark_settings.shuffle_partitions, 50)


def _jar_properties(spark_settings: SparkSettings) -> dict[str, str]:
    """Returns the options for Delta's jars: on the class path in local mode, as only its classes can be archived."""
    jars = delta_jars(Path(spark_settings.ivy_dir).absolute())
    if not jars:
        return {"spark.jars.packages": DELTA_COORDINATE}
    if spark_settings.master.startswith("local"):
        return {"spark.driver.extraClassPath": os.pathsep.join(map(str, jars))}
    return {"spark.jars": ",".join(map(str, jars))}


def _java_options(spark_settings: SparkSettings) -> str:
    options = [JVM_OPTIONS, QUICK_JVM_OPTIONS if spark_settings.quick_start else FULL_JVM_OPTIONS]
    archive = class_archive(spark_settings.ivy_dir)
    if archive.is_file() and spark_settings.master.startswith("local"):
        # The JVM ignores an archive of another JDK and starts as if there were none.
        options.append(f"-XX:SharedArchiveFile={archive} {QUIET_ARCHIVE}")
    return " ".join([*options, spark_settings.jvm_options])
