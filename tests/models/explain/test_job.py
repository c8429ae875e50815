"""Which model explains a request, if none is named."""

from pathlib import Path

from models.explain.job import find_model
from tests.models.report_city import DAY, publish, settings_of, write


def test_the_model_of_the_current_release_explains_on_any_day(tmp_path):
    settings = settings_of(tmp_path)
    bundle = str(Path(settings.storage.artifacts) / "training" / str(DAY) / "bundle")
    assert find_model(settings, DAY) == bundle

    root = settings.storage.root
    write(root, "releases", [publish(root, 1), {**publish(root, 2), "model_version": "spacetime-gr/7"}])
    assert find_model(settings, DAY) == "models:/spacetime-gr/7"
