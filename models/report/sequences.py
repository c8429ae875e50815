"""Map of the POIs, and views of the users' histories: the second and third section of the report.

In: the tables of a release. Out: a section with the map of blocks, one with lengths, richness and patterns.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from conf.settings import Settings
from conf.tables import PATTERNS
from conf.units import EARTH_RADIUS_KM, KM_PER_DEGREE
from models.report.data import NothingToShowError, ReleaseTables
from models.report.page import (
    Figure,
    Section,
    TableView,
    Tile,
    Topic,
    format_count,
    format_share,
    list_counts,
)
from models.report.plots import SERIES, Cells, draw_histogram, draw_map

NUM_TOP_BLOCKS = 10
FOCUS_SHARE = 0.8
"""Share of the POIs in the close-up of the map, which shows the blocks nearest to the densest one."""
MAX_FOCUS_DEGREES = 1.5

MAP = Topic(
    "map",
    "Map of blocks",
    sees=(
        "Every cell of the grid that holds live POIs, coloured by how many; numbers mark the blocks of the "
        "table."
    ),
    alarm="POIs in the sea, at (0, 0) or mirrored across the diagonal: swapped coordinates got through.",
)
SEQUENCES = Topic(
    "sequences",
    "Sequences",
    sees="How long and how varied the histories of all users are, each as of the user's last active day.",
    alarm=(
        "A pile of users at length 1, or most users below the richness threshold: little is left to learn "
        "from."
    ),
)


@dataclass(frozen=True)
class BlockMap:
    """Blocks with live POIs, most POIs first.

    Attributes:
        blocks: block_id, center_lon, center_lat, num_pois, num_slots, top_category.
    """

    blocks: pd.DataFrame
    cells: Cells

    @property
    def focus(self) -> tuple[float, float, float, float]:
        """Window around the densest block: west, south, east, north."""
        lon, lat = self.blocks["center_lon"].to_numpy(), self.blocks["center_lat"].to_numpy()
        away = np.hypot((lon - lon[0]) * np.cos(np.radians(lat[0])), lat - lat[0])
        order = np.argsort(away, kind="stable")
        cumulated = np.cumsum(self.blocks["num_pois"].to_numpy()[order])
        last = order[: int(np.searchsorted(cumulated, FOCUS_SHARE * cumulated[-1])) + 1]
        near = last[away[last] <= MAX_FOCUS_DEGREES]
        return _window(self.cells, near)

    @property
    def everything(self) -> tuple[float, float, float, float]:
        """Window that holds all blocks."""
        return _window(self.cells, np.arange(len(self.blocks)))


def summarise_blocks(tables: ReleaseTables, *, cell_km: float) -> BlockMap:
    """Counts the POIs that are live on the release's day, by block."""
    version = ds.field("index_version") == tables.release.index_version
    slots = tables.scan(
        "poi_index", ["block_id", "category_id", "valid_from", "valid_to"], version
    ).to_pandas()
    day = pd.Timestamp(tables.day)
    starts, stops = pd.to_datetime(slots["valid_from"]), pd.to_datetime(slots["valid_to"])
    slots["is_live"] = (starts <= day) & (stops.isna() | (stops > day))
    live = slots[slots["is_live"]]
    columns = ["block_id", "center_lon", "center_lat"]
    blocks = tables.scan("blocks", columns, version).to_pandas().set_index("block_id")
    blocks["num_pois"] = live.groupby("block_id").size()
    blocks["num_slots"] = slots.groupby("block_id").size()
    common = live.groupby("block_id")["category_id"].agg(lambda ids: ids.value_counts().sort_index().idxmax())
    blocks["top_category"] = common.map(load_category_names(tables)).fillna("unknown")
    blocks = (
        blocks.dropna(subset=["num_pois"])
        .reset_index()
        .sort_values(["num_pois", "block_id"], ascending=[False, True])
    )
    blocks = blocks.reset_index(drop=True).astype({"num_pois": "int64", "num_slots": "int64"})
    half_lat = cell_km / KM_PER_DEGREE / 2
    lat = blocks["center_lat"].to_numpy()
    around = np.maximum(np.round(2 * math.pi * EARTH_RADIUS_KM / cell_km * np.cos(np.radians(lat))), 1)
    half_lon, lon = 180.0 / around, blocks["center_lon"].to_numpy()
    cells = Cells(
        lon - half_lon, lat - half_lat, lon + half_lon, lat + half_lat, blocks["num_pois"].to_numpy()
    )
    return BlockMap(blocks, cells)


def load_category_names(tables: ReleaseTables, *, top_level: bool = False) -> dict[int, str]:
    """Returns the name of every category id, the leaf or the top of its path; none without the table."""
    if not tables.exists("categories"):
        return {}
    version = ds.field("index_version") == tables.release.index_version
    rows = tables.scan("categories", ["category_id", "category", "category_path"], version).to_pylist()
    return {
        row["category_id"]: row["category_path"].split(" > ")[0] if top_level else row["category"]
        for row in rows
    }


def build_map(tables: ReleaseTables, settings: Settings) -> Section:
    """Builds the section with the map."""
    summary = summarise_blocks(tables, cell_km=settings.index.cell_km)
    blocks = summary.blocks
    if blocks.empty:
        raise NothingToShowError(f"No POI is live on {tables.day}.")
    fullest, median = int(blocks["num_slots"].max()), int(blocks["num_pois"].median())
    return Section(
        MAP,
        tiles=(
            Tile("live POIs", format_count(int(blocks["num_pois"].sum()))),
            Tile("blocks", format_count(len(blocks)), f"index version {tables.release.index_version}"),
            Tile(
                "fullest block",
                format_count(fullest),
                f"slots, of {format_count(settings.index.max_inner)} that fit",
            ),
            Tile("median block", format_count(median), "live POIs"),
        ),
        figures=_draw_maps(summary),
        tables=(_top_table(blocks),),
    )


def _draw_maps(summary: BlockMap) -> tuple[Figure, ...]:
    """Draws the close-up and, if it leaves blocks out, the whole map; numbers each top block once."""
    top = summary.blocks.head(NUM_TOP_BLOCKS)
    places = zip(top["center_lon"], top["center_lat"], strict=True)
    marks = {str(number): place for number, place in enumerate(places, start=1)}
    inside = {text: place for text, place in marks.items() if _holds(summary.focus, place)}
    outside = {text: place for text, place in marks.items() if text not in inside}
    close_up = Figure(draw_map(summary.cells, summary.focus, inside), "Around the densest block")
    if summary.focus == summary.everything:
        return (close_up,)
    return (close_up, Figure(draw_map(summary.cells, summary.everything, outside), "All blocks"))


def _top_table(blocks: pd.DataFrame) -> TableView:
    total = int(blocks["num_pois"].sum())
    rows = tuple(
        (
            str(number),
            str(row.block_id),
            format_count(row.num_pois),
            format_share(row.num_pois, total),
            format_count(row.num_slots),
            f"{row.center_lat:.3f}, {row.center_lon:.3f}",
            row.top_category,
        )
        for number, row in enumerate(blocks.head(NUM_TOP_BLOCKS).itertuples(), start=1)
    )
    header = ("", "block", "live POIs", "share", "slots ever", "centre (lat, lon)", "most frequent category")
    return TableView("Blocks with the most live POIs", header, rows, text_columns=(0, 6))


def build_sequences(tables: ReleaseTables, settings: Settings) -> Section:
    """Builds the section about histories."""
    users = tables.latest("action_sequences", "user_id", ["seq_len", "richness", "pattern"])
    if users.empty:
        raise NothingToShowError(f"No user has a sequence up to {tables.day}.")
    low = settings.samples.min_richness
    num_poor = int((users["richness"] < low).sum())
    active = f"{format_count(tables.count('action_sequences', tables.today))} active on the day"
    patterns = users["pattern"].value_counts()
    poor = f"{format_count(num_poor)} users; features, but no pre-training"
    return Section(
        SEQUENCES,
        tiles=(
            Tile("users", format_count(len(users)), active),
            Tile("median length", f"{users['seq_len'].median():.0f}", "actions in the arrays"),
            Tile("median richness", f"{users['richness'].median():.1f}", "effective number of interest POIs"),
            Tile(f"richness below {low:g}", format_share(num_poor, len(users)), poor),
        ),
        figures=_draw_histories(users, settings),
        bars=(list_counts("Users by pattern", {name: int(patterns.get(name, 0)) for name in PATTERNS}),),
    )


def _draw_histories(users: pd.DataFrame, settings: Settings) -> tuple[Figure, ...]:
    lengths, richness = users["seq_len"].to_numpy(np.float64), users["richness"].to_numpy(np.float64)
    window, cap, low = (
        settings.samples.window_actions,
        settings.sequences.max_actions,
        settings.samples.min_richness,
    )
    edges = {f"window {window}": float(window)}
    if lengths.max() > cap / 2:  # else the line would squeeze the histogram
        edges[f"kept at most {cap}"] = float(cap)
    shown = np.minimum(richness, np.quantile(richness, 0.995))
    label, threshold = "richness (the top 0.5 % drawn at the edge)", {f"threshold {low:g}": low}
    return (
        Figure(draw_histogram(lengths, label="actions in the sequence", unit="users", marks=edges), "Length"),
        Figure(
            draw_histogram(shown, label=label, unit="users", marks=threshold, color=SERIES[2]), "Richness"
        ),
    )


def _window(cells: Cells, rows: np.ndarray) -> tuple[float, float, float, float]:
    west, south = float(cells.west[rows].min()), float(cells.south[rows].min())
    east, north = float(cells.east[rows].max()), float(cells.north[rows].max())
    margin = 0.04 * max(east - west, north - south)
    return west - margin, south - margin, east + margin, north + margin


def _holds(window: tuple[float, float, float, float], place: tuple[float, float]) -> bool:
    west, south, east, north = window
    return west <= place[0] <= east and south <= place[1] <= north
