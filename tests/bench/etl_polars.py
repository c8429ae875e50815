"""The same work as `etl_spark`, written for Polars by hand, as one lazy query over the actions.

Same rules as `etl/tables/poi_index.py`, `etl/columns/action_rules.py` and `etl/tables/clean_actions.py`, in their order
where order counts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from conf.tokens import ACTION_TYPES
from etl.columns.refusal import BLANKS, BROKEN_TEXT, PLACEHOLDERS
from tests.bench import etl_bounds

BOUNDS = etl_bounds.bounds()
ORDER_OF_USER = ("action_ts_ms", "clean_poi_id", "action_type_id", "clean_action_id")


def start() -> None:
    """Polars needs no session; it takes a thread per core."""


def run(session: None, folder: Path, target: Path) -> None:
    """Reads the raw Parquet of `folder` and writes the sequences to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    slots = build_slots(pl.read_parquet(folder / "raw_pois.parquet"))
    accepted = keep_accepted(pl.scan_parquet(folder / "raw_actions.parquet"), slots.lazy())
    build_sequences(accepted).sink_parquet(target / "sequences.parquet", compression="zstd")


def build_slots(raw: pl.DataFrame) -> pl.DataFrame:
    """Returns the slot of every good POI."""
    lon, lat = pl.col("poi_lon"), pl.col("poi_lat")
    payload = [name for name in raw.columns if name != "day"]
    keys = ["is_closed", *(name for name in payload if name != "is_closed")]
    pois = (
        raw.with_columns(clean_poi_id=_trimmed("poi_id"))
        .filter(
            ~_is_nothing("clean_poi_id"),
            ~pl.col("clean_poi_id").str.contains(BROKEN_TEXT),
            _longest("poi_id", "name", "category", "category_path") <= BOUNDS["max_text_length"],
            _is_on_earth(lon, lat),
            ~((lon == 0) & (lat == 0)),
        )
        .sort(keys, descending=[True, *(False for _ in keys[1:])], nulls_last=True)
        .unique("clean_poi_id", keep="first", maintain_order=True)
        .with_columns(
            leaf=pl.coalesce(
                pl.col("category").str.strip_chars().replace("", None),
                pl.col("category_path").str.split(" > ").list.last().str.strip_chars().replace("", None),
            ),
            slot_from=pl.min_horizontal(pl.col("first_seen_date").fill_null(BOUNDS["day"]), BOUNDS["day"]),
        )
    )
    verdicts = etl_bounds.is_interest_by_leaf()
    leaves = sorted(pois["leaf"].drop_nulls().unique())
    categories = pl.DataFrame(
        {
            "leaf": leaves,
            "category_id": range(1, len(leaves) + 1),
            "is_interest": [verdicts[leaf] for leaf in leaves],
        },
        schema={"leaf": pl.String, "category_id": pl.Int32, "is_interest": pl.Boolean},
    )
    placed = _with_cells(pois).join(categories, on="leaf", how="left")
    blocks = _with_block_ids(placed.group_by("cell_x", "cell_y").agg(pl.col("slot_from").min()))
    return (
        placed.join(blocks, on=["cell_x", "cell_y"])
        .sort("block_id", "slot_from", "hilbert", "clean_poi_id")
        .select(
            "clean_poi_id",
            "block_id",
            pl.int_range(pl.len(), dtype=pl.Int32).over("block_id").alias("inner_id"),
            lon.alias("slot_lon"),
            lat.alias("slot_lat"),
            pl.col("category_id").fill_null(0),
            pl.col("is_interest").fill_null(True),
        )
    )


def keep_accepted(raw: pl.LazyFrame, slots: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the actions that no rule refuses, with their slot."""
    time, user_lon, user_lat = pl.col("action_ts_ms"), pl.col("user_lon"), pl.col("user_lat")
    is_usable = _is_on_earth(user_lon, user_lat) & ~((user_lon == 0) & (user_lat == 0))
    clean_lon, clean_lat = (pl.when(is_usable).then(place) for place in (user_lon, user_lat))
    tz = pl.col("tz_offset_min")
    nautical = ((pl.coalesce(clean_lon, "slot_lon") / 15 + 0.5).floor() * 60).cast(pl.Int32)
    payload = [name for name in raw.collect_schema().names() if name != "day"]
    types = pl.Enum(ACTION_TYPES)
    good = (
        raw.with_columns(
            clean_action_id=_trimmed("action_id"),
            clean_user_id=_trimmed("user_id"),
            clean_poi_id=_trimmed("poi_id"),
            clean_action_type=_trimmed("action_type").str.to_lowercase(),
            content=pl.struct(payload).hash(),
        )
        .filter(
            pl.col("corrupt_record").is_null(),
            ~_is_nothing("clean_user_id"),
            ~_is_nothing("clean_poi_id"),
            _longest("action_id", "user_id", "poi_id", "action_type") <= BOUNDS["max_text_length"],
            ~pl.concat_str(
                "clean_action_id", "clean_user_id", "clean_poi_id", ignore_nulls=True
            ).str.contains(BROKEN_TEXT),
            pl.col("clean_action_type").is_in(list(ACTION_TYPES)),
            time.is_between(BOUNDS["earliest_ms"], BOUNDS["latest_ms"]),
        )
        .join(slots, on="clean_poi_id")
        .filter(*_place_rules())
        .with_columns(
            clean_lon=clean_lon,
            clean_lat=clean_lat,
            tz=pl.when(tz.is_between(-840, 840)).then(tz).otherwise(nautical),
            action_type_id=pl.col("clean_action_type").cast(types).to_physical().cast(pl.Int32),
        )
    )
    once = good.sort("clean_action_id", "action_ts_ms", "content").unique(
        "clean_action_id", keep="first", maintain_order=True
    )
    ordered = once.sort("clean_user_id", *ORDER_OF_USER)
    # Sorted by user first, so a row's predecessor is its neighbour; no window is needed.
    same = [pl.col(name) == pl.col(name).shift() for name in ("clean_user_id", *ORDER_OF_USER[:3])]
    kept = ordered.filter(~pl.all_horizontal(same).fill_null(False))
    of_day = ["clean_user_id", time // 86_400_000]
    return kept.filter(pl.int_range(pl.len()).over(of_day) < BOUNDS["max_actions_per_day"])


def build_sequences(accepted: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the sequences of all users."""
    in_order = accepted.sort("clean_user_id", "action_ts_ms", "clean_action_id")
    is_same_user = pl.col("clean_user_id") == pl.col("clean_user_id").shift()
    last = in_order.with_columns(
        from_lon=pl.coalesce(
            "clean_lon", pl.when(is_same_user).then(pl.col("slot_lon").shift()), float("nan")
        ),
        from_lat=pl.coalesce(
            "clean_lat", pl.when(is_same_user).then(pl.col("slot_lat").shift()), float("nan")
        ),
        num_actions=pl.len().over("clean_user_id").cast(pl.Int64),
        from_start=pl.int_range(pl.len()).over("clean_user_id"),
    ).filter(pl.col("num_actions") - pl.col("from_start") <= BOUNDS["max_actions"])
    near = [pl.col(name).sort().get((pl.len() - 1) // 2) for name in ("slot_lon", "slot_lat")]
    homes = last.group_by("clean_user_id").agg(near_lon=near[0], near_lat=near[1])
    tastes = (
        last.filter("is_interest")
        .group_by("clean_user_id", "clean_poi_id")
        .agg(visits=pl.len().cast(pl.Float64))
        .group_by("clean_user_id")
        .agg(richness=(pl.col("visits").sum().log() - _entropy_part()).exp())
    )
    km = _km(pl.col("slot_lon"), pl.col("slot_lat"), pl.col("near_lon"), pl.col("near_lat"))
    histories = (
        last.join(homes, on="clean_user_id")
        .with_columns(is_travel=km > BOUNDS["travel_km"])
        .sort("clean_user_id", "action_ts_ms", "clean_action_id")
        .group_by("clean_user_id", maintain_order=True)
        .agg(*_arrays(), pl.col("num_actions").first(), pl.col("is_simulated").any(), seq_len=pl.len())
        .join(tastes, on="clean_user_id", how="left")
    )
    share = pl.col("is_travels").list.mean()
    pattern = (
        pl.when(share < BOUNDS["mixed_share"])
        .then(pl.lit("local"))
        .when(share > 1 - BOUNDS["mixed_share"])
        .then(pl.lit("travel"))
        .otherwise(pl.lit("mixed"))
    )
    return histories.with_columns(
        day=pl.lit(BOUNDS["day"]),
        index_version=pl.lit(1, dtype=pl.Int32),
        seq_len=pl.col("seq_len").cast(pl.Int32),
        richness=pl.col("richness").fill_null(0.0),
        pattern=pattern,
        profile_ids=pl.lit([], dtype=pl.List(pl.Int32)),
    ).rename({"clean_user_id": "user_id"})


def _place_rules() -> Sequence[pl.Expr]:
    lon, lat, at = pl.col("poi_lon"), pl.col("poi_lat"), (pl.col("slot_lon"), pl.col("slot_lat"))
    user_lon, user_lat = pl.col("user_lon"), pl.col("user_lat")
    shift = BOUNDS["max_poi_shift_km"]
    is_poi_swapped = (_km(lon, lat, *at) > shift) & (_km(lat, lon, *at) <= shift)
    is_user_swapped = (_km(user_lon, user_lat, *at) > 1000) & (_km(user_lat, user_lon, *at) <= 100)
    return (
        (lon.is_finite() & lat.is_finite()).fill_null(True),
        ~(_is_swapped(lon, lat) | is_poi_swapped.fill_null(False)),
        lon.is_null() | lat.is_null() | _is_on_earth(lon, lat),
        ~((lon == 0) & (lat == 0)).fill_null(False),
        ~(_is_swapped(user_lon, user_lat) | is_user_swapped.fill_null(False)),
    )


def _arrays() -> list[pl.Expr]:
    fields = {
        "poi_ids": pl.col("clean_poi_id"),
        "timestamps_ms": pl.col("action_ts_ms"),
        "tz_offsets_min": pl.col("tz"),
        "user_lons": pl.col("from_lon").cast(pl.Float32),
        "user_lats": pl.col("from_lat").cast(pl.Float32),
        "action_type_ids": pl.col("action_type_id"),
        "block_ids": pl.col("block_id"),
        "inner_ids": pl.col("inner_id"),
        "poi_lons": pl.col("slot_lon").cast(pl.Float32),
        "poi_lats": pl.col("slot_lat").cast(pl.Float32),
        "category_ids": pl.col("category_id"),
        "is_interests": pl.col("is_interest"),
        "is_travels": pl.col("is_travel"),
    }
    return [value.alias(name) for name, value in fields.items()]


def _entropy_part() -> pl.Expr:
    visits = pl.col("visits")
    return (visits * visits.log()).sum() / visits.sum()


def _trimmed(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars(BLANKS)


def _is_nothing(name: str) -> pl.Expr:
    return pl.col(name).fill_null("").str.to_lowercase().is_in(["", *PLACEHOLDERS])


def _longest(*names: str) -> pl.Expr:
    return pl.max_horizontal(pl.col(name).str.len_chars().fill_null(0) for name in names)


def _is_on_earth(lon: pl.Expr, lat: pl.Expr) -> pl.Expr:
    return (lon.is_between(-180, 180) & lat.is_between(-90, 90)).fill_null(False)


def _is_swapped(lon: pl.Expr, lat: pl.Expr) -> pl.Expr:
    return ~_is_on_earth(lon, lat) & _is_on_earth(lat, lon)


def _km(lon_a: pl.Expr, lat_a: pl.Expr, lon_b: pl.Expr, lat_b: pl.Expr) -> pl.Expr:
    half_lat = ((lat_b - lat_a).radians() / 2).sin()
    half_lon = ((lon_b - lon_a).radians() / 2).sin()
    chord = half_lat * half_lat + lat_a.radians().cos() * lat_b.radians().cos() * half_lon * half_lon
    km = etl_bounds.EARTH_DIAMETER_KM * chord.sqrt().clip(upper_bound=1.0).arcsin()
    return pl.when(_is_on_earth(lon_a, lat_a)).then(km)


def _with_cells(pois: pl.DataFrame) -> pl.DataFrame:
    lon, lat = pois["poi_lon"].to_numpy(), pois["poi_lat"].to_numpy()
    up = (lat + 90.0) / (180.0 / etl_bounds.NUM_ROWS)
    cell_y = np.minimum(np.floor(up), etl_bounds.NUM_ROWS - 1).astype(np.int32)
    columns = _num_columns(cell_y)
    along = np.where(lon >= 180.0, 0.0, (lon + 180.0) / 360.0 * columns)
    cell_x = np.minimum(np.floor(along), columns - 1).astype(np.int32)
    hilbert = _hilbert(along - cell_x, up - cell_y, 8)
    return pois.with_columns(
        pl.Series("cell_x", cell_x), pl.Series("cell_y", cell_y), pl.Series("hilbert", hilbert)
    )


def _with_block_ids(cells: pl.DataFrame) -> pl.DataFrame:
    cell_x, cell_y = cells["cell_x"].to_numpy(), cells["cell_y"].to_numpy()
    lon = (cell_x + 0.5) * 360.0 / _num_columns(cell_y) - 180.0
    lat = (cell_y + 0.5) * (180.0 / etl_bounds.NUM_ROWS) - 90.0
    around = _hilbert((lon + 180) / 360, (lat + 90) / 180, 14)
    return (
        cells.with_columns(pl.Series("around", around))
        .sort("slot_from", "around", "cell_y", "cell_x")
        .select("cell_x", "cell_y", pl.int_range(pl.len(), dtype=pl.Int32).alias("block_id"))
    )


def _num_columns(cell_y: np.ndarray) -> np.ndarray:
    middle = (cell_y + 0.5) * (180.0 / etl_bounds.NUM_ROWS) - 90.0
    around = etl_bounds.COLUMNS_AT_EQUATOR * np.cos(np.radians(middle))
    return np.maximum(np.floor(around + 0.5), 1).astype(np.int32)


def _hilbert(east: np.ndarray, north: np.ndarray, levels: int) -> np.ndarray:
    digits, following = np.array(etl_bounds.HILBERT_DIGIT), np.array(etl_bounds.HILBERT_NEXT)
    side = 1 << levels
    x, y = (np.clip(np.floor(part * side), 0, side - 1).astype(np.int64) for part in (east, north))
    number, turn = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    for level in reversed(range(levels)):
        entry = turn * 4 + (x >> level & 1) * 2 + (y >> level & 1)
        number, turn = number * 4 + digits[entry], following[entry]
    return number
