"""Vectors that say nothing are told from vectors that do."""

import numpy as np
import pytest

from models.evaluation.vector_spread import describe_collapse, measure_spread


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


RNG = np.random.default_rng(0)
SPREAD_OUT = unit(RNG.standard_normal((200, 16)))


def test_vectors_in_all_directions_spread():
    spread = measure_spread(SPREAD_OUT)

    assert spread.distinct_share == 1.0
    assert spread.effective_rank == pytest.approx(16, rel=0.05)  # 16 directions, about equally
    assert spread.mean_cosine == pytest.approx(0.0, abs=0.01)
    assert describe_collapse(spread, "vectors") == []


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        (
            np.sign(RNG.standard_normal((200, 1))) * SPREAD_OUT[:1],
            "0.010 of 200 vectors differ",
        ),  # two, +v and -v
        (np.repeat(SPREAD_OUT[:1], 200, axis=0), "0.005 of 200 vectors differ"),
        (unit(SPREAD_OUT[:1] + 0.01 * SPREAD_OUT), "cosine 1.000 on average"),
        (unit(np.outer(RNG.standard_normal(200), SPREAD_OUT[0]) + 1e-3 * SPREAD_OUT), "effective rank 1.0"),
    ],
)
def test_vectors_that_are_alike_or_on_a_line_do_not(vectors, told):
    assert any(told in reason for reason in describe_collapse(measure_spread(vectors), "vectors"))


def test_of_a_handful_nothing_is_said():
    assert describe_collapse(measure_spread(np.repeat(SPREAD_OUT[:1], 19, axis=0)), "vectors") == []
    assert measure_spread(np.zeros((0, 4))).vectors == 0


def test_a_rotation_changes_nothing():
    rotation, _ = np.linalg.qr(RNG.standard_normal((16, 16)))
    one, other = measure_spread(SPREAD_OUT), measure_spread(SPREAD_OUT @ rotation)

    assert other.effective_rank == pytest.approx(one.effective_rank)
    assert other.mean_cosine == pytest.approx(one.mean_cosine)
