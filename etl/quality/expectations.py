"""The gates: Great Expectations judges the figures of a day's tables and keeps its findings as Data Docs.

In: the rules of every table (`etl/quality/gate_rules.py`), which hold the figures that one Spark action has counted
(`etl/quality/table_statistics.py`). Out: critical failures, which stop publication, and warnings, which do not. Great
Expectations gets one row with a column per figure, not the rows themselves: on rows it takes several Spark jobs per
expectation. Single rows are refused in `etl/columns/refusal.py`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from etl.quality.gate_rules import Rule

# Read once, when Great Expectations is imported.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.checkpoint import CheckpointResult
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations.expectation import Expectation

LOGGER = logging.getLogger(__name__)
SITE = "audits"


@dataclass(frozen=True)
class Judgement:
    """The findings of the gates, in words.

    Attributes:
        failures: critical findings; the day must not be published.
        warnings: findings that are kept and shown; publication goes on.
        unjudged: comparisons that could not be made, since there are too few earlier days.
    """

    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)


def judge(rules: Mapping[str, Sequence[Rule]], docs_folder: str | Path, *, day: date) -> Judgement:
    """Judges the figures of all tables of a day and adds a page per table to the Data Docs.

    Args:
        rules: by table, in the order in which failures are reported; a table without rules is left out.
        docs_folder: folder of the Data Docs site of the day, whose entry is index.html; pages of an earlier run are
            removed.
        day: names the pages.

    Returns:
        One sentence per rule that does not hold, by severity.
    """
    suites = {table: of_table for table, of_table in rules.items() if of_table}
    judgement = Judgement()
    if not suites:
        return judgement
    result = _run(suites, Path(docs_folder), day)
    for validation in result.run_results.values():
        for outcome in validation.results:
            if outcome.success:
                continue
            config = outcome.expectation_config
            assert config is not None, "every expectation of ours has a config"
            messages = judgement.warnings if config.severity == "warning" else judgement.failures
            messages.append(str((config.meta or {})["failure"]))
    LOGGER.info(
        "gates of %s: %d rules on %d tables, %d failed, %d warnings",
        day, sum(map(len, suites.values())), len(suites), len(judgement.failures), len(judgement.warnings),
    )  # fmt: skip
    return judgement


def build_expectation(rule: Rule) -> "Expectation":
    """Turns a rule into an expectation of Great Expectations, with its severity."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    # The largest value of one row is the figure itself, and the Data Docs show it as observed.
    return gxe.ExpectColumnMaxToBeBetween(
        column=_figure_name(rule),
        min_value=rule.low,
        max_value=rule.high,
        severity=FailureSeverity(rule.severity),
        description=f"{rule.says} ({rule.severity})",
        meta={"failure": rule.failure},
    )


def _run(suites: Mapping[str, Sequence[Rule]], docs_folder: Path, day: date) -> "CheckpointResult":
    """Runs one checkpoint over all tables in one context: creating a context takes as long as judging."""
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier

    context = _open_context(docs_folder)
    source = context.data_sources.add_pandas("figures")
    validations = []
    for table, rules in suites.items():
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("figures_of_the_day")
        suite = context.suites.add(
            gx.ExpectationSuite(name=table, expectations=[build_expectation(rule) for rule in rules])
        )
        validations.append(
            context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
        )
    checkpoint = gx.Checkpoint(
        name="audit",
        validation_definitions=validations,
        actions=[],
        result_format="BASIC",
    )
    run_id = RunIdentifier(run_name=str(day), run_time=datetime.now(UTC))
    result = context.checkpoints.add(checkpoint).run(
        batch_parameters={"dataframe": _figures(suites)}, run_id=run_id
    )
    # Once for all tables; an action of the checkpoint would rebuild the site after each table.
    context.build_data_docs(site_names=[SITE])
    return result


def _open_context(docs_folder: Path) -> "EphemeralDataContext":
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # The module sets its own level when it is imported; it would report a temporary folder.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    docs_folder.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs_folder.absolute())}
    site = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        # The result pages show the expectations too.
        "site_section_builders": {"expectations": "None"},
        "store_backend": store,
    }
    context.add_data_docs_site(site_name=SITE, site_config=site)  # type: ignore[arg-type]
    return context


def _figures(suites: Mapping[str, Sequence[Rule]]) -> "pd.DataFrame":
    """Returns one row for all tables: a checkpoint takes one frame, and each suite looks at its own columns."""
    import pandas as pd

    return pd.DataFrame([{_figure_name(rule): rule.found for rules in suites.values() for rule in rules}])


def _figure_name(rule: Rule) -> str:
    return f"{rule.table}: {rule.label}"
