"""Blocks and inner ids from places alone: the curve, the cells, and no dependence on the order of rows."""

import numpy as np

from models.data.geo import distance_km
from models.protocols.place_index import UNKNOWN_BLOCK, build_index, find_cells, hilbert_numbers
from tests.models.planted_city import some_pois


def test_the_curve_visits_every_cell_once_and_only_steps_to_neighbours():
    side = 8
    x, y = (part.ravel() for part in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))

    numbers = hilbert_numbers((x + 0.5) / side, (y + 0.5) / side, order=3)

    assert sorted(numbers) == list(range(side * side))
    order = np.argsort(numbers)
    assert (np.abs(np.diff(x[order])) + np.abs(np.diff(y[order])) == 1).all()


def test_a_square_of_two_by_two_starts_and_ends_in_the_south():
    numbers = hilbert_numbers(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.1, 0.9, 0.9, 0.1]), order=1)

    assert numbers.tolist() == [0, 1, 2, 3]


def test_inner_ids_count_every_block_from_0_and_blocks_are_cells():
    slots = build_index(some_pois()).slots.to_pandas()

    for _, block in slots.groupby("block_id"):
        assert sorted(block["inner_id"]) == list(range(len(block)))
        rows, columns, *_ = find_cells(block["poi_lon"].to_numpy(), block["poi_lat"].to_numpy())
        assert len({*zip(rows, columns, strict=True)}) == 1
    assert sorted(slots["block_id"].unique()) == list(range(slots["block_id"].nunique()))


def test_cells_are_about_five_kilometres_wide_and_high():
    lons, lats = np.linspace(-74.5, -73.5, 2001), np.linspace(40.0, 41.0, 2001)
    _, columns, _, _ = find_cells(lons, np.full(2001, 40.7))
    rows, _, _, _ = find_cells(np.full(2001, -74.0), lats)
    width = distance_km(np.array([-74.5]), np.array([40.7]), np.array([-73.5]), np.array([40.7]))[0]
    height = distance_km(np.array([-74.0]), np.array([40.0]), np.array([-74.0]), np.array([41.0]))[0]

    assert abs(width / np.ptp(columns) - 5) < 0.5
    assert abs(height / np.ptp(rows) - 5) < 0.5


def test_the_order_of_rows_changes_nothing():
    pois = some_pois()

    first, second = build_index(pois), build_index(pois.sample(frac=1, random_state=1))

    assert first.slots.equals(second.slots)
    assert first.blocks.equals(second.blocks)


def test_unknown_categories_are_0_and_known_ones_are_counted_from_1():
    index = build_index(some_pois())
    slots = index.slots.to_pandas().set_index("poi_id")

    assert index.categories == ("Bar", "Cafe", "Gym")
    assert slots.loc[["p000", "p001", "p002", "p003"], "category_id"].tolist() == [0, 2, 3, 1]


def test_block_centres_lie_in_their_blocks():
    index = build_index(some_pois())
    slots, blocks = index.slots.to_pandas(), index.blocks.to_pandas()
    pois = slots.merge(blocks, on="block_id")

    rows, columns, *_ = find_cells(pois["poi_lon"].to_numpy(), pois["poi_lat"].to_numpy())
    of_center = find_cells(pois["center_lon"].to_numpy(), pois["center_lat"].to_numpy())

    np.testing.assert_array_equal(rows, of_center[0])
    np.testing.assert_array_equal(columns, of_center[1])


def test_a_hashed_index_has_as_many_blocks_without_a_place_and_every_poi_once():
    by_place, hashed = build_index(some_pois()), build_index(some_pois(), is_hashed=True)
    slots = hashed.slots.to_pandas()

    assert hashed.blocks.num_rows == by_place.blocks.num_rows
    assert np.isnan(hashed.blocks["center_lon"].to_numpy()).all()
    assert not slots.duplicated(["block_id", "inner_id"]).any()
    assert (
        slots.groupby("block_id")["inner_id"].max().add(1).tolist()
        == slots.groupby("block_id").size().tolist()
    )
    own = slots["poi_id"].to_numpy(dtype=object)
    found = hashed.find_blocks(own, slots["poi_lon"].to_numpy(), slots["poi_lat"].to_numpy())
    assert (
        found.tolist() == slots["block_id"].tolist()
    )  # a POI outside the index goes where it would have gone
    shifted = some_pois().assign(longitude=lambda pois: pois["longitude"] + 1)
    assert build_index(shifted, is_hashed=True).slots["block_id"] != by_place.slots["block_id"]


def test_a_poi_outside_the_index_is_in_the_block_of_its_cell():
    index = build_index(some_pois())
    slots = index.slots.to_pandas()

    found = index.find_blocks(
        np.array(["new"] * 60), slots["poi_lon"].to_numpy(), slots["poi_lat"].to_numpy()
    )

    assert found.tolist() == slots["block_id"].tolist()
    assert index.find_blocks(np.array(["far"]), np.array([10.0]), np.array([10.0])).tolist() == [
        UNKNOWN_BLOCK
    ]
