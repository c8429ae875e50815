"""The arithmetic of docs/scale.md on figures that can be checked by hand."""

import pytest

from tests.bench.scale_on_paper import Stage, weights_of


def test_machines_are_the_core_hours_over_those_of_a_night() -> None:
    stage = Stage("users", units=3.6e9, rate=1000)  # 3.6 million core seconds

    assert stage.core_hours == pytest.approx(1000)
    assert stage.machines == pytest.approx(1000 / (64 * 6))


def test_weights_of_the_layers_are_counted() -> None:
    # tiny: 2 layers of 4 * 64 * 64 (attention, as many keys as heads) + 3 * 64 * 192 (SwiGLU)
    assert weights_of("tiny") == 2 * (4 * 64 * 64 + 3 * 64 * 192)
