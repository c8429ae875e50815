"""Clock, gap, cells and waves against values worked out by hand or by the standard library."""

import math
from datetime import UTC, datetime, timedelta

import pytest
import torch
from torch.testing import assert_close

from models.data.features import (
    bucket_gap,
    encode_fourier,
    hash_geo_cells,
    hash_slots,
    num_fourier_features,
    place_on_sphere,
    split_time,
)

SCALES = (5.0, 1.0)


@pytest.mark.parametrize(
    ("utc", "offset_min"),
    [
        (datetime(2026, 1, 1, 0, 5), -300),  # the evening before in New York
        (datetime(2024, 2, 29, 23, 59), 60),  # leap day turns into 1 March
        (datetime(1999, 12, 31, 12, 0), 0),
        (datetime(2000, 3, 1, 0, 0), 345),
    ],
)
def test_local_clock_agrees_with_the_standard_library(utc, offset_min):
    moment = utc.replace(tzinfo=UTC)
    local = moment + timedelta(minutes=offset_min)

    clock = split_time(torch.tensor(int(moment.timestamp() * 1000)), torch.tensor(offset_min), ("12-31",))

    assert [int(part) for part in clock] == [
        local.hour,
        local.weekday(),
        local.weekday() * 24 + local.hour,
        local.month - 1,
        int((local.month, local.day) == (12, 31)),
        local.hour * 60 + local.minute,
    ]


def test_gap_buckets_double_every_two_and_know_the_first_action():
    minutes = torch.tensor([0, 1, 3, 7, 60 * 24 * 3650])

    buckets = bucket_gap(minutes * 60_000, torch.tensor([True, True, True, True, True]))

    assert buckets.tolist() == [1, 3, 5, 7, 31]
    assert bucket_gap(torch.tensor([5]), torch.tensor([False])).tolist() == [0]


def test_places_of_one_cell_share_a_bucket_and_unknown_places_have_bucket_0():
    places = torch.tensor([[4.9000, 52.3700], [4.9001, 52.3701], [4.98, 52.37], [math.nan, 52.37]])

    cells = hash_geo_cells(places, SCALES, 4096)

    assert cells[0].tolist() == cells[1].tolist()
    assert cells[0, 0] != cells[2, 0]
    assert cells[3].tolist() == [0, 4096]
    assert ((cells >= torch.tensor([0, 4096])) & (cells < torch.tensor([4096, 8192]))).all()


def test_180_east_is_180_west():
    places = torch.tensor([[180.0, 10.0], [-180.0, 10.0]])

    cells = hash_geo_cells(places, SCALES, 4096)

    assert cells[0].tolist() == cells[1].tolist()
    assert_close(*encode_fourier(places, (20_000.0, 100.0)))


def test_the_poles_are_places_like_others():
    cells = hash_geo_cells(torch.tensor([[0.0, 90.0], [0.0, -90.0]]), SCALES, 4096)

    assert ((cells > 0) & (cells < 8192)).all()


def test_fourier_coordinates_are_zero_where_the_place_is_unknown():
    waves = encode_fourier(torch.tensor([[math.nan, math.nan], [4.9, 52.4]]), (100.0, 1.0))

    assert waves.shape == (2, num_fourier_features((100.0, 1.0)))
    assert waves[0].abs().max() == 0
    assert waves[1].abs().max() > 0


def test_a_chord_on_the_sphere_is_the_distance_of_near_places():
    a, b = place_on_sphere(torch.tensor([[0.0, 60.0], [0.01, 60.0]]))

    assert float((a - b).norm() * 6371.0088) == pytest.approx(
        0.01 * math.cos(math.pi / 3) * 111.195, rel=1e-4
    )


def test_hashed_slots_spread_over_all_rows_but_the_first():
    block, inner = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")

    rows = hash_slots(block, inner, 101)

    assert int(rows.min()) == 1
    assert int(rows.max()) == 100
    assert rows.flatten().bincount(minlength=101)[1:].max() < 60  # 20 expected
