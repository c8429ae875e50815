"""The gate: what a table holds against its contract, judged by Great Expectations, kept as Data Docs.

In: the rows of one day at one version, a contract of `conf/tables.py`. Out: the failures, readable; none =
passed. What needs more than one column (keys that occur twice, arrays of unequal length, vectors that are not
of unit length) is first made a column, so that everything is judged in the one aggregation into which GX
gathers its metrics. Row-level refusal is not here but in `etl/refusal.py`: GX does not return rows on Spark.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from conf.tables import TABLES, TableContract
from etl.session import compute_once

# Read once, when Great Expectations is imported.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

if TYPE_CHECKING:
    from great_expectations.checkpoint import CheckpointResult
    from great_expectations.expectations.expectation import Expectation

LOGGER = logging.getLogger(__name__)
SITE = "audits"
KEY_REPEATS, LENGTHS_DIFFER, VECTOR_LENGTH = "key_repeats", "lengths_differ", "vector_length"
UNIT_TOLERANCE = 1e-3
MAX_EXAMPLES = 3


def gate(rows: DataFrame, name: str, docs_folder: str | Path) -> list[str]:
    """Checks rows of a table against its contract and adds a page to the Data Docs.

    Args:
        rows: the rows of one day, read at a pinned version.
        name: table of `conf/tables.py`.
        docs_folder: folder of the Data Docs site; its entry is index.html.

    Returns:
        One sentence per broken expectation, in the order of the contract; empty if the rows may be published.
    """
    contract = TABLES[name]
    prepared = compute_once(with_checked_columns(rows, contract))
    result = _run(prepared, contract, Path(docs_folder))
    failures = _describe_failures(result, name)
    LOGGER.info("gate of %s: %d expectations failed", name, len(failures))
    return failures


def with_checked_columns(rows: DataFrame, contract: TableContract) -> DataFrame:
    """Replaces arrays by what is checked of them: `lengths_differ`, `vector_length`; adds `key_repeats`."""
    checked: dict[str, SparkColumn] = {}
    if contract.key:
        # One shuffle by key; the counts of all rows are then one more column to aggregate.
        checked[KEY_REPEATS] = F.count("*").over(Window.partitionBy(*contract.key)) > 1
    if contract.equal_lengths:
        pairs = [F.size(name) != F.size(group[0]) for group in contract.equal_lengths for name in group[1:]]
        checked[LENGTHS_DIFFER] = F.greatest(*(pair.cast("int") for pair in pairs)) == 1
    if "embedding" in contract.column_names:
        squares = F.aggregate(
            "embedding", F.lit(0.0), lambda total, x: total + x.cast("double") * x.cast("double")
        )
        checked[VECTOR_LENGTH] = F.sqrt(squares)
    kept = [
        column.name
        for column in contract.columns
        if not column.is_array and not column.type.startswith("map<")
    ]
    return rows.select(*kept, *(column.alias(name) for name, column in checked.items()))


def build_expectations(contract: TableContract) -> list["Expectation"]:
    """Derives the suite from the contract: rows, key, nulls, bounds, closed lists, lengths, unit vectors."""
    from great_expectations import expectations as gxe

    expectations: list[Expectation] = [gxe.ExpectTableRowCountToBeBetween(min_value=1)]
    for column in contract.columns:
        if column.is_array or column.type.startswith("map<"):
            continue
        if not column.nullable and not contract.raw:
            expectations.append(gxe.ExpectColumnValuesToNotBeNull(column=column.name))
        if column.low is not None or column.high is not None:
            expectations.append(
                gxe.ExpectColumnValuesToBeBetween(
                    column=column.name, min_value=column.low, max_value=column.high
                )
            )
        if column.allowed:
            expectations.append(
                gxe.ExpectColumnValuesToBeInSet(column=column.name, value_set=list(column.allowed))
            )
    if contract.key:
        expectations.append(gxe.ExpectColumnValuesToBeInSet(column=KEY_REPEATS, value_set=[False]))
    if contract.equal_lengths:
        expectations.append(gxe.ExpectColumnValuesToBeInSet(column=LENGTHS_DIFFER, value_set=[False]))
    if "embedding" in contract.column_names:
        expectations.append(
            gxe.ExpectColumnValuesToBeBetween(
                column=VECTOR_LENGTH, min_value=1 - UNIT_TOLERANCE, max_value=1 + UNIT_TOLERANCE
            )
        )
    return expectations


def _run(prepared: DataFrame, contract: TableContract, docs_folder: Path) -> "CheckpointResult":
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    docs_folder.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs_folder.absolute())}
    site = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": store,
    }
    context.add_data_docs_site(site_name=SITE, site_config=site)  # type: ignore[arg-type]
    asset = context.data_sources.add_spark("delta").add_dataframe_asset(contract.name)
    batch = asset.add_batch_definition_whole_dataframe("rows_of_the_day")
    suite = context.suites.add(
        gx.ExpectationSuite(name=contract.name, expectations=build_expectations(contract))
    )
    validation = context.validation_definitions.add(
        gx.ValidationDefinition(name=contract.name, data=batch, suite=suite)
    )
    checkpoint = gx.Checkpoint(
        name=contract.name,
        validation_definitions=[validation],
        actions=[gx.checkpoint.UpdateDataDocsAction(name="data_docs", site_names=[SITE])],
        result_format="BASIC",
    )
    return context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": prepared})


def _describe_failures(result: "CheckpointResult", name: str) -> list[str]:
    failures = []
    for validation in result.run_results.values():
        for outcome in validation.results:
            if not outcome.success:
                failures.append(
                    _describe(name, outcome.expectation_config, outcome.result, outcome.exception_info)
                )
    return failures


def _describe(name: str, config: object, found: dict[str, object], exception: dict[str, object]) -> str:
    """Says what was expected and what was found, in the words of the contract."""
    kwargs = {key: value for key, value in config.kwargs.items() if key not in ("batch_id", "column")}  # type: ignore[attr-defined]
    column = config.kwargs.get("column")  # type: ignore[attr-defined]
    if exception.get("raised_exception"):
        return f"{name}: {column or 'the table'} could not be checked ({exception.get('exception_message')})"
    if column is None:
        return f"{name}: {found.get('observed_value')} rows, expected {_limits(kwargs)}"
    examples = list(_as_list(found.get("partial_unexpected_list")))[:MAX_EXAMPLES]
    expected = {KEY_REPEATS: "keys to be unique", LENGTHS_DIFFER: "arrays of equal length"}.get(
        str(column), _limits(kwargs)
    )
    shown = (
        f", for example {', '.join(map(str, examples))}"
        if examples and column not in (KEY_REPEATS, LENGTHS_DIFFER)
        else ""
    )
    return f"{name}: {found.get('unexpected_count')} rows break column {column}: expected {expected}{shown}"


def _limits(kwargs: dict[str, object]) -> str:
    if "value_set" in kwargs:
        return f"one of {kwargs['value_set']}"
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    if low is None and high is None:
        return "no nulls"
    return f"{'any' if low is None else low} to {'any' if high is None else high}"


def _as_list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
