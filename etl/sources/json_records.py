"""JSON files -> one row per record: JSON lines, arrays, several values on a line, records over several lines.

Every record of a file becomes one row: an object with its text, or a text that is not an object. `from_json` reads the
first value of a text and ignores the rest. So a line counts as read only if it ends where its last value ends, which a
mark behind it shows. Files that are one array, or whose records span several lines, are parsed whole if they are of
moderate size. A file that cannot be parsed whole is read line by line, and nothing is dropped.
"""

import codecs
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.errors import CorruptInputError
from etl.columns.judging import BLANKS
from etl.sources.files import BYTE_ORDER_MARK, InputFiles, read_head, size_of

MAX_WHOLE_BYTES = 128 * 2**20
"""Largest file that is parsed whole; as text it takes several times this in memory."""
MAX_HEADS = 1_000
"""Files whose first bytes are looked at; further ones are taken for JSON lines."""
END = "\u0001 end of the text \u0001"
"""The mark behind a text. It holds characters that JSON does not allow in a string unless they are escaped."""
_END_IN_JSON = json.dumps(END)
_FUSED = r"\}\s*\{"
LINES, ARRAY, SPREAD = "lines", "array", "spread"
"""Shapes of a file: a record a line; one array; records that go over several lines."""


def read_records(spark: SparkSession, inputs: InputFiles) -> DataFrame:
    """Reads JSON files.

    Returns:
        `record`, the text of every record (as it came, where it has a line of its own), `is_object`, and columns for
        folders named `name=value`.

    Raises:
        CorruptInputError: a large file is one array, or has records that span several lines.
    """
    by_shape: dict[str, list[str]] = {}
    for number, file in enumerate(inputs.files):
        shape = _shape_of(spark, file) if number < MAX_HEADS else LINES
        by_shape.setdefault(shape, []).append(file)
    frames = []
    for shape, files in sorted(by_shape.items()):
        is_whole = shape != LINES
        if is_whole:
            _refuse_large(spark, files)
        records_of = partial(_records_of_file, is_array=shape == ARRAY) if is_whole else _records_of_line
        for group in replace(inputs, files=tuple(files)).by_folders():
            frames.append(_split(_read_text(spark, group, group.files, whole=is_whole), records_of))
    return reduce(partial(DataFrame.unionByName, allowMissingColumns=True), frames)


def _shape_of(spark: SparkSession, file: str) -> str:
    head = codecs.decode(read_head(spark, file), "utf-8", "replace").strip(BLANKS + BYTE_ORDER_MARK)
    if head.startswith("["):
        return ARRAY
    first, has_more, _ = head.partition("\n")
    if not has_more or not first.startswith("{"):
        return LINES
    # A line that ends within an object, where the text up to a later line is one.
    if _is_json(first) or not _starts_with_object(head):
        return LINES
    return SPREAD


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _starts_with_object(text: str) -> bool:
    """Tells whether a text begins with an object that spans several lines."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        # Longer than the head: most of its lines hold one member each.
        return len(text) > 60_000 and not any(line.startswith("{") for line in text.splitlines()[1:20])
    return "\n" in text[:end]


def _refuse_large(spark: SparkSession, files: Sequence[str]) -> None:
    for file in files:
        size = size_of(spark, file)
        if size > MAX_WHOLE_BYTES:
            raise CorruptInputError(
                path=file,
                expected="JSON lines",
                cause=f"it holds one array, or records over several lines, and with {size / 2**20:.0f} MiB it is too "
                f"large to be parsed whole ({MAX_WHOLE_BYTES / 2**20:.0f} MiB); write one JSON object a line, for "
                "example with jq -c '.[]'",
            )


def _read_text(spark: SparkSession, inputs: InputFiles, files: Sequence[str], *, whole: bool) -> DataFrame:
    return spark.read.options(**inputs.options()).text(list(files), wholetext=whole)


def _split(texts: DataFrame, records_of: Callable[[Column], Column]) -> DataFrame:
    """Returns one row per record of the texts in column `value`; a blank text has none."""
    folders = [name for name in texts.columns if name != "value"]
    body = F.btrim("value", F.lit(BLANKS))
    return (
        texts.select(*folders, body.alias("value"))
        .where("value <> ''")
        .select(*folders, F.explode(records_of(F.col("value"))).alias("found"))
        .select(*folders, "found.record", "found.is_object")
    )


def _records_of_line(line: Column) -> Column:
    """Returns the records on a line; the line itself where it is one object, or cannot be read to its end."""
    text = F.regexp_replace(line, r"\s*,$", "")

    def of_values(values: Column) -> Column:
        is_one = (F.size(values) == 2) & ~text.startswith("[")
        return F.when(is_one, F.array(_record(text, text.startswith("{")))).otherwise(_unfold(values))

    def of_fused(values: Column) -> Column:
        return F.when(_is_split_right(values, text), _unfold(values)).otherwise(
            F.array(_record(line, F.lit(False)))
        )

    return _let(
        _parse(text),
        lambda values: F.when(_is_parsed(values), of_values(values)).otherwise(
            _let(_parse(_apart(text)), of_fused)
        ),
    )


def _records_of_file(text: Column, *, is_array: bool) -> Column:
    """Returns the records of a whole file; those of its lines where it cannot be parsed whole."""
    lines = F.split(text, r"\r?\n")
    if is_array:  # a torn array: its brackets are not records
        lines = F.transform(lines, lambda line: F.regexp_replace(line, r"^[\s\[]+|[\s,\]]+$", ""))
    lines = F.filter(F.transform(lines, lambda line: F.btrim(line, F.lit(BLANKS))), lambda line: line != "")
    by_line = F.flatten(F.transform(lines, _records_of_line))
    return _let(
        _parse(text),
        lambda values: F.when(_is_parsed(values), _unfold(values)).otherwise(
            _let(
                _parse(_apart(text)),
                lambda more: F.when(_is_split_right(more, text), _unfold(more)).otherwise(by_line),
            )
        ),
    )


def _apart(text: Column) -> Column:
    """Adds the comma between objects that follow each other without one."""
    return F.regexp_replace(text, _FUSED, "},{")


def _is_split_right(values: Column, text: Column) -> Column:
    """Tells whether every pair of braces was a border of objects: one inside a string adds a comma but no value."""
    return _is_parsed(values) & (F.size(values) == F.size(F.split(text, _FUSED)) + 1)


def _parse(text: Column) -> Column:
    """Parses values separated by commas into their texts and the mark; null, or without it, where that fails."""
    return F.from_json(F.concat(F.lit("["), text, F.lit(f",{_END_IN_JSON}]")), "array<string>")


def _is_parsed(values: Column) -> Column:
    return F.coalesce(F.try_element_at(values, F.lit(-1)) == END, F.lit(False))


def _unfold(values: Column) -> Column:
    """Returns the records among parsed values, those of arrays one by one; other values are records too."""
    items = F.slice(values, F.lit(1), F.size(values) - 1)

    def of_value(value: Column) -> Column:
        inner = F.when(value.startswith("["), F.from_json(value, "array<string>"))
        texts = F.transform(F.coalesce(inner, F.array(value)), lambda item: F.coalesce(item, F.lit("null")))
        return F.transform(texts, lambda item: _record(item, item.startswith("{")))

    return F.flatten(F.transform(items, of_value))


def _record(text: Column, is_object: Column) -> Column:
    return F.struct(text.alias("record"), is_object.alias("is_object"))


def _let(value: Column, use: Callable[[Column], Column]) -> Column:
    """Computes a value once for an expression that uses it several times; Spark would compute it for every use."""
    return F.element_at(F.transform(F.array(value), use), 1)
