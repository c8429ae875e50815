"""A ranking team joins a release to the POIs it showed."""

import numpy as np

from udfs.releases.ranker_inputs import read_ranker_inputs
from udfs.releases.reader import read_release


def test_inputs_are_those_of_one_release_and_nan_where_it_holds_nothing(published_twice):
    root = published_twice.root
    scores = read_release(None, root, "ranking_scores", release=1).to_pylist()
    users = {
        row["user_id"]: row["embedding"]
        for row in read_release(None, root, "user_embeddings", release=1).to_pylist()
    }
    logits = {(row["request_id"], row["poi_id"]): row["click_logit"] for row in scores}

    found = read_ranker_inputs(
        root, ["r1", "r1", "r9"], ["u1", "u2", "nobody"], ["p0", "p1", "nowhere"], release=1
    )

    assert found.release_id == 1
    np.testing.assert_allclose(found.click_logits, [logits["r1", "p0"], logits["r1", "p1"], np.nan])
    np.testing.assert_allclose(found.users[:2], [users["u1"], users["u2"]])
    assert np.isnan(found.users[2]).all()
    assert np.isnan(found.pois[2]).all()
    assert read_ranker_inputs(root, [], [], []).release_id == 2
