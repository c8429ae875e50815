"""Every record of a JSON file is one row, whatever the file looks like; what is no record is one, too."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.sources import files, json_records


@pytest.fixture
def read(spark, tmp_path):
    def read_text(*texts):
        for number, text in enumerate(texts):
            (tmp_path / f"{number}.json").write_text(text, encoding="utf-8")
        found = files.find_files(spark, str(tmp_path), what="text", needed_by="A test", remedy="None.")
        rows = json_records.read_records(spark, found).collect()
        return [(row["record"], row["is_object"]) for row in rows]

    return read_text


LINES = {
    '{"a": 1771750800000.0, "b":"x"}': [('{"a": 1771750800000.0, "b":"x"}', True)],  # as it came
    '{"a":1}{"a":2}': [('{"a":1}', True), ('{"a":2}', True)],
    '{"a":1} {"a":2}  {"a":3}': [('{"a":1}', True), ('{"a":2}', True), ('{"a":3}', True)],
    '{"a":1},{"a":2}': [('{"a":1}', True), ('{"a":2}', True)],
    '[{"a":1},{"a":2}]': [('{"a":1}', True), ('{"a":2}', True)],
    '{"a":1},': [('{"a":1}', True)],
    '\ufeff{"a":1}': [('{"a":1}', True)],
    '{"a":"}{"}': [('{"a":"}{"}', True)],  # a brace pair inside a string
    '{"a":"}{"}{"a":2}': [('{"a":"}{"}{"a":2}', False)],  # beside a border: nobody can tell which is which
    '{"a":1} garbage': [('{"a":1} garbage', False)],
    '{"a":1}]': [('{"a":1}]', False)],
    '{"a":1}}': [('{"a":1}}', False)],
    '{"a":1': [('{"a":1', False)],
    "7": [("7", False)],
    '"text"': [('"text"', False)],
    "null": [("null", False)],
    '[{"a":1},null]': [('{"a":1}', True), ("null", False)],
    "": [],
    "  \t": [],
}


def test_a_line_is_read_to_its_end_or_refused_whole(read):
    found = read("\n".join(LINES) + "\n")

    assert Counter(found) == Counter(record for records in LINES.values() for record in records)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a":1},\n{"a":2}]',
        '[\n{"a":1},\n{"a":2}\n]\n',
        '[\n  {\n    "a": 1\n  },\n  {\n    "a": 2\n  }\n]',
        '{\n  "a": 1\n}\n{\n  "a": 2\n}\n',  # objects over several lines, one after the other
        '[{"a":1}]\n[{"a":2}]\n',
    ],
)
def test_arrays_and_objects_over_several_lines_are_read_as_their_records(read, text):
    assert sorted(read(text)) == [('{"a":1}', True), ('{"a":2}', True)]


def test_a_torn_array_loses_nothing_but_its_brackets(read):
    assert sorted(read('[\n{"a":1},\n{"a":2},\n{"a":3')) == [
        ('{"a":1}', True),
        ('{"a":2}', True),
        ('{"a":3', False),
    ]


def test_files_of_different_shapes_are_read_together(read):
    found = read('[{"a":1},\n{"a":2}]', '{"a":3}\n{"a":4}\n')

    assert sorted(record for record, _ in found) == ['{"a":1}', '{"a":2}', '{"a":3}', '{"a":4}']


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(records=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1, max_size=12))
def test_what_python_writes_is_what_is_read(spark, tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("records")
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    # A line end inside a string is escaped; other Unicode line ends are letters to JSON and to Spark alike.
    (folder / "lines.json").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    found = files.find_files(spark, str(folder), what="text", needed_by="A test", remedy="None.")

    rows = json_records.read_records(spark, found).collect()

    assert sorted(row["record"] for row in rows) == sorted(lines)
    assert all(row["is_object"] for row in rows)
