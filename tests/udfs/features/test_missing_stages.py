"""Nights of a model that was trained without some stages: their tables are empty, by name, and the release comes."""

import json
import shutil
from dataclasses import replace

import pytest

from conf.errors import GateFailedError
from tests.udfs.feature_city import DAY_1, DAY_2, sequence
from udfs.releases.reader import read_release

pytestmark = pytest.mark.spark
WHY = "table ranking_samples holds no train rows"


def without(bundle, folder, *stages):
    """Copies a bundle as if it had been trained without some stages."""
    shutil.copytree(bundle, folder)
    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    left = [stage for stage in content["stages"] if stage not in stages]
    path.write_text(json.dumps({**content, "stages": left, "skipped": dict.fromkeys(stages, WHY)}))
    return folder


def test_a_model_without_click_head_makes_no_scores_and_the_rest_is_released(first_night, bundle, tmp_path):
    city = replace(first_night, bundle=without(bundle, tmp_path / "model", "sft_ranking"))

    summary = city.run("features", DAY_1)
    audit = city.run("audit", DAY_1)
    city.run("publish", DAY_1)

    assert summary.notes["ranking_scores_skipped"] == WHY
    assert audit.notes["skipped"] == {"ranking_scores": WHY}
    assert json.loads((city.artifacts / "audits" / f"{DAY_1}.json").read_text())["skipped"] == {
        "ranking_scores": WHY
    }
    shown = {
        name: read_release(None, city.root, name).num_rows
        for name in ("user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates")
    }
    assert shown["ranking_scores"] == 0
    assert all(rows for name, rows in shown.items() if name != "ranking_scores")


def test_a_model_of_pretraining_alone_is_released_even_on_a_day_without_requests(
    first_night, bundle, tmp_path
):
    city = replace(first_night, bundle=without(bundle, tmp_path / "model", "sft_ranking", "sft_embedding"))
    city.deliver(DAY_1, ranking_requests=[])

    for job in ("features", "audit", "publish"):
        summary = city.run(job, DAY_1)

    assert summary.notes == {"release_id": 1, "is_new": True, "day": str(DAY_1)}
    (release,) = city.read("releases")
    assert release["model_version"].startswith("folder-")
    assert release["index_version"] == 1
    assert not city.read("user_embeddings")
    assert not city.read("poi_embeddings")


def test_scores_of_a_day_go_with_the_model_that_made_them(computed, bundle, tmp_path):
    assert computed.read("ranking_scores", DAY_1)
    city = replace(computed, bundle=without(bundle, tmp_path / "model", "sft_ranking"))

    city.run("features", DAY_1)

    assert not city.read("ranking_scores", DAY_1)


def test_a_table_that_the_model_can_make_must_still_be_whole(published, bundle, tmp_path):
    published.deliver(DAY_2, action_sequences=[sequence("u9", DAY_2, [0, 1])], ranking_requests=[])
    city = replace(published, bundle=without(bundle, tmp_path / "model", "sft_ranking"))
    for name in ("poi_embeddings", "ranking_scores", "poi_candidates"):
        city.run(name, DAY_2)

    with pytest.raises(GateFailedError):
        city.run("audit", DAY_2)
