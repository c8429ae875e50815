"""Settings are layered, frozen, and refuse what they do not know."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conf.errors import MissingInputError, SettingsError
from conf.settings import IndexSettings, load_settings
from models.config import load_recipe

TINY = Path(__file__).parents[2] / "conf" / "models" / "tiny.yaml"


@pytest.fixture(autouse=True)
def no_layers_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACETIME_CONF", raising=False)


def write_layer(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_unknown_key_is_refused_with_the_keys_that_exist(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "my.yaml", "index: {cel_km: 3.0}\n")

    with pytest.raises(SettingsError) as caught:
        load_settings([layer])

    known = ", ".join(sorted(IndexSettings.model_fields))
    assert str(caught.value) == (
        f"setting 'index.cel_km' in {layer} cannot be used: no such key. Nothing was run, since a setting that is "
        f"not understood would silently change the tables. Known keys here: {known}. "
        "python -m conf.settings prints every key, its default and unit."
    )


def test_unknown_section_on_the_command_line_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"setting 'indx' in --set indx.cell_km=3 cannot be used: no such key"
    ):
        load_settings(overrides=["indx.cell_km=3"])


def test_value_out_of_range_names_the_key_and_the_layer() -> None:
    with pytest.raises(SettingsError, match=r"'index.cell_km' in --set index.cell_km=-1 .* greater than 0"):
        load_settings(overrides=["index.cell_km=-1"])


def test_override_without_equals_sign_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"it is not of the form a\.b=value"):
        load_settings(overrides=["index.cell_km"])


def test_later_layer_wins_and_the_command_line_wins_over_layers(tmp_path: Path) -> None:
    first = write_layer(tmp_path / "first.yaml", "index: {cell_km: 3.0, max_inner: 100}\n")
    second = write_layer(tmp_path / "second.yaml", "index: {cell_km: 4.0}\n")

    settings = load_settings([first, second], ["index.version=2"])

    assert (settings.index.cell_km, settings.index.max_inner, settings.index.version) == (4.0, 100, 2)


def test_layers_of_the_environment_lie_between_base_and_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = write_layer(tmp_path / "environment.yaml", "index: {cell_km: 3.0, max_inner: 100}\n")
    option = write_layer(tmp_path / "option.yaml", "index: {cell_km: 4.0}\n")
    monkeypatch.setenv("SPACETIME_CONF", str(environment))

    settings = load_settings([option])

    assert (settings.index.cell_km, settings.index.max_inner) == (4.0, 100)


def test_missing_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"the settings file was not found at .*gone.yaml"):
        load_settings([tmp_path / "gone.yaml"])


def test_layer_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "broken.yaml", "index: {cell_km: [\n")

    with pytest.raises(SettingsError, match="the file is not YAML"):
        load_settings([layer])


def test_layer_that_is_a_list_is_refused(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "list.yaml", "- index\n")

    with pytest.raises(SettingsError, match="does not hold a mapping"):
        load_settings([layer])


def test_settings_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().index.cell_km = 1.0


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_reaches_a_text_setting_as_it_is(text: str) -> None:
    assert load_settings(overrides=[f"storage.artifacts={text}"]).storage.artifacts == text


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_reaches_a_spark_property_as_it_is(text: str) -> None:
    given_conf = load_settings(overrides=[f"spark.conf.spark.sql.x={text}"]).spark.conf

    assert given_conf["spark.sql.x"] == text


@settings(deadline=None)
@given(
    key=st.sampled_from(
        [
            "source.since",
            "index.version",
            "city.radius_km",
            "samples.preference_rules",
            "spark.conf",
            "spark",
            "indx",
        ]
    ),
    text=st.text(),
)
def test_a_value_is_read_or_refused_by_name(key: str, text: str) -> None:
    with contextlib.suppress(SettingsError):
        load_settings(overrides=[f"{key}={text}"])


@pytest.mark.parametrize(
    "text", ["X/team #1/wh", "*.json", "[a].json", "@x", "%x", "no", "2012", "null", "a: b", ""]
)
def test_what_yaml_would_read_as_something_else_is_a_path(text: str) -> None:
    assert load_settings(overrides=[f"source.path={text}"]).source.path == text


def test_a_choice_takes_the_word_that_yaml_reads_as_a_switch() -> None:
    assert load_recipe(TINY, ["decoder.poi_vectors=off"]).decoder.poi_vectors == "off"


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_a_day_that_may_be_missing_takes_the_words_for_nothing(text: str) -> None:
    assert load_settings(overrides=["source.since=2026-02-21", f"source.since={text}"]).source.since is None


@pytest.mark.parametrize("text", ["0", "86400", "2026", "yesterday", "2026-02-30"])
def test_a_day_is_not_read_from_a_number(text: str) -> None:
    with pytest.raises(SettingsError, match=r"setting 'source.since' in --set"):
        load_settings(overrides=[f"source.since={text}"])


def test_a_day_of_a_layer_is_not_a_number_of_seconds(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="86400 is no day; write it as YYYY-MM-DD"):
        load_settings([write_layer(tmp_path / "my.yaml", "source: {since: 86400}\n")])


def test_a_number_with_a_leading_zero_is_not_octal() -> None:
    assert load_settings(overrides=["index.version=010"]).index.version == 10


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"its value cannot be read .*surrogates not allowed"):
        load_settings(overrides=["storage.root=\udcff"])


def test_a_layer_with_the_same_key_twice_is_refused(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "twice.yaml", "index: {cell_km: 3.0}\nindex: {max_inner: 100}\n")

    with pytest.raises(SettingsError, match="the key 'index' stands twice"):
        load_settings([layer])


def test_a_layer_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    layer = tmp_path / "latin.yaml"
    layer.write_bytes("storage: {root: d\u00f6rf}\n".encode("latin-1"))

    with pytest.raises(SettingsError, match="the file is not YAML"):
        load_settings([layer])
