"""The accelerator is a switch: off by default, and without its jar the session says how to get it."""

from pathlib import Path

import pytest

from conf.errors import MissingInputError
from conf.settings import SparkSettings
from etl.accelerator import COMET_COORDINATE, accelerator_jars, accelerator_properties, comet_jar


def test_nothing_is_added_by_default() -> None:
    settings = SparkSettings()

    assert accelerator_jars(settings) == []
    assert accelerator_properties(settings) == {}


def test_a_missing_jar_is_told_of_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    settings = SparkSettings(accelerator="comet", ivy_dir=str(tmp_path))

    with pytest.raises(MissingInputError, match="--accelerator comet"):
        accelerator_jars(settings)


def test_its_jar_is_found_where_ivy_puts_it(tmp_path: Path) -> None:
    jar = comet_jar(tmp_path)
    jar.parent.mkdir()
    jar.touch()

    assert jar.name == f"{COMET_COORDINATE.replace(':', '_', 1).replace(':', '-')}.jar"
    assert accelerator_jars(SparkSettings(accelerator="comet", ivy_dir=str(tmp_path))) == [jar]


def test_it_gets_as_much_memory_outside_the_heap_as_in_it() -> None:
    properties = accelerator_properties(SparkSettings(accelerator="comet", driver_memory="3g"))

    assert properties["spark.plugins"] == "org.apache.spark.CometPlugin"
    assert properties["spark.memory.offHeap.size"] == "3g"
