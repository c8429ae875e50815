"""Pages about every table and every cleaning rule, generated from the contracts: python -m etl docs.

In: `conf/tables.py`, `conf/rules.py`. Out: the part of etl/README.md below a marker; the text above it is kept.
"""

from pathlib import Path

from conf.errors import SettingsError
from conf.gates import TableGates, gates_of
from conf.rules import RULES
from conf.tables import TABLES, Column, TableContract

MARKER = "<!-- below this line: made by `python -m etl docs`, do not edit -->"
WRITES = {
    "day": "the rows of a day are replaced",
    "merge": "rows are updated and added by key",
    "log": "rows are only added",
}


def write_page(readme: Path, *, check: bool = False) -> bool:
    """Writes the pages below the marker and tells whether anything changed.

    Args:
        readme: file to write; created if it does not exist.
        check: write nothing.

    Raises:
        SettingsError: the folder of `readme` does not exist.
    """
    if not readme.parent.is_dir():
        raise SettingsError(where="--readme", key=str(readme), problem="its folder does not exist")
    before = readme.read_text() if readme.is_file() else ""
    head = before.split(MARKER)[0].rstrip() if MARKER in before else before.rstrip()
    after = f"{head}\n\n{MARKER}\n\n{render_page()}" if head else f"{MARKER}\n\n{render_page()}"
    if not check and after != before:
        readme.write_text(after)
    return after != before


def render_page() -> str:
    """Renders all tables and rules as Markdown."""
    tables = "\n".join(_render_table(contract) for contract in TABLES.values())
    return f"## Tables\n\n{tables}\n## Cleansing rules\n\n{_render_rules()}"


def _render_table(contract: TableContract) -> str:
    facts = [
        f"One row: {contract.grain}. Key: {_code(contract.key) or 'none, as delivered'}.",
        f"Writing: {WRITES[contract.write]}.",
    ]
    if contract.partition_by:
        facts.append(f"Partitioned by {_code(contract.partition_by)}.")
    if contract.equal_lengths:
        facts.append(
            "Arrays beginning with "
            + ", ".join(f"`{group[0]}`" for group in contract.equal_lengths)
            + " are parallel."
        )
    facts += _describe_gates(gates_of(contract.name))
    lines = "\n".join(_render_column(column) for column in contract.columns)
    head = "| column | type | values | meaning |\n|---|---|---|---|"
    return f"### {contract.name}\n\n{' '.join(facts)}\n\n{head}\n{lines}\n"


def _describe_gates(gates: TableGates) -> list[str]:
    """Describes what the audit watches in a table beyond its contract; empty if it watches nothing."""
    watched = []
    if gates.volume is not None:
        counted = f"rows with `{gates.counted_by}` = the day" if gates.counted_by else "rows"
        watched.append(f"number of {counted} ({gates.volume} if almost nothing came)")
    watched += [f"share of `{name}`" for name in gates.shares]
    if gates.newest:
        watched.append(f"newest `{gates.newest}` (critical)")
    watched += [f"unique {_code(columns)} (critical)" for columns in gates.unique]
    if gates.frozen:
        watched.append(f"{_code(gates.frozen)} of a key never change (critical)")
    return [f"Watched: {'; '.join(watched)}."] if watched else []


def _render_column(column: Column) -> str:
    return f"| `{column.name}` | {column.type} | {_values(column)} | {_cell(column.doc)} |"


def _values(column: Column) -> str:
    parts = [", ".join(column.allowed)] if column.allowed else []
    if column.low is not None and column.high is not None:
        parts.append(f"{column.low:g} to {column.high:g}")
    elif column.low is not None:
        parts.append(f"from {column.low:g}")
    elif column.high is not None:
        parts.append(f"up to {column.high:g}")
    return "; ".join([*parts, *(["may be null"] if column.nullable else [])])


def _render_rules() -> str:
    lines = "\n".join(
        f"| {rule.table} | `{rule.code}` | {rule.severity} | {_cell(rule.explanation)} | "
        f"{_cell(rule.example)} |"
        for rule in RULES
    )
    head = "| table | code | severity | meaning | example |\n|---|---|---|---|---|"
    return f"The first rule that matches gives the reason.\n\n{head}\n{lines}\n"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
