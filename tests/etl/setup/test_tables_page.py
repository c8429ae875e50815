"""The table pages follow the contracts; what stands above the marker is left alone."""

import pytest

from conf.errors import SettingsError
from conf.rules import RULES
from conf.tables import TABLES
from etl.setup.tables_page import MARKER, render_page, write_page


def test_every_table_column_and_rule_has_a_line():
    page = render_page()

    for contract in TABLES.values():
        assert f"### {contract.name}\n" in page
        assert all(f"| `{column.name}` | {column.type} |" in page for column in contract.columns)
    assert all(f"| `{rule.code}` |" in page for rule in RULES)


def test_text_above_the_marker_is_kept_and_a_second_run_changes_nothing(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# ETL\n\nWritten by hand.\n\n{MARKER}\n\nstale page\n")

    assert write_page(readme)
    assert not write_page(readme)

    text = readme.read_text()
    assert text.startswith(f"# ETL\n\nWritten by hand.\n\n{MARKER}\n")
    assert "stale page" not in text


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SettingsError, match="its folder does not exist"):
        write_page(tmp_path / "nowhere" / "README.md")
