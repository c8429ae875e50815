"""An explanation as text: request, top POIs, top blocks, past actions with large shares, last actions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from rich.console import Console
from rich.table import Table

from models.data.arrays import IntArray
from models.explain.attention import AGES, DISTANCES, AttentionMap
from models.explain.attribution import Explanation, Place, Shares
from models.explain.interests import Interests

NUM_TAIL = 8
"""Last actions shown, in addition to those with the largest shares."""
NUM_LEANED_ON = 10
NUM_BLOCKS = 8
NO_MEMORY = (
    "The history copy is switched off in this model: nothing of the past is copied, so no action has a share."
)


def print_explanation(explanation: Explanation, names: Mapping[str, str], console: Console) -> None:
    """Prints the request, then one table per question.

    Args:
        explanation: the explanation to print.
        names: names by POI id; a POI without a name is shown by its id.
        console: output console.
    """
    console.print(describe_request(explanation), highlight=False)
    console.print(tabulate_pois(explanation, names))
    console.print(tabulate_blocks(explanation))
    if explanation.has_memory:
        leaned_on = explanation.leaned_on(NUM_LEANED_ON)
        console.print(tabulate_actions(explanation, names, leaned_on, "the prediction leans on"))
        console.print(tabulate_visits(explanation, names))
        console.print(describe_shares(explanation), highlight=False)
    else:
        console.print(NO_MEMORY)
    tail = range(max(0, len(explanation.past) - NUM_TAIL), len(explanation.past))
    title = f"the last {len(tail)} of {len(explanation.past)} actions, newest first"
    console.print(tabulate_actions(explanation, names, list(reversed(tail)), title))


def print_interests(
    interests: Interests, names: Mapping[str, str], categories: Mapping[int, str], console: Console
) -> None:
    """Prints what is near the user's vector: POIs, and the categories that stand out among them.

    Args:
        interests: what to print.
        names: names by POI id.
        categories: names by category id; a category without a name is shown by its id.
        console: output console.
    """
    compared = f"{interests.num_compared} live POIs compared"
    table = _start(
        f"interests: POIs nearest to the user's vector, {compared}", "POI", "cosine", "visits before"
    )
    for poi in interests.pois:
        table.add_row(names.get(poi.poi_id, poi.poi_id), f"{poi.cosine:.3f}", str(poi.num_visits))
    console.print(table)
    table = _start("interests: categories among the nearest POIs", "category", "share", "of all compared")
    for found in interests.categories:
        name = categories.get(found.category_id, str(found.category_id))
        table.add_row(name, f"{found.share:.0%}", f"{found.usual:.0%}")
    console.print(table)


def print_attention(attention: AttentionMap, console: Console) -> None:
    """Prints where the request's attention goes, by age and distance of past actions."""
    table = _start("attention of the transformer on past actions (number of actions)", "age", *DISTANCES)
    for age, shares, counts in zip(AGES, attention.on_actions, attention.num_actions, strict=True):
        cells = [
            f"{share:.1%} ({count})" if count else "" for share, count in zip(shares, counts, strict=True)
        ]
        table.add_row(age, *cells)
    console.print(table)
    rest = f"user and profile {attention.on_user:.1%}, request {attention.on_request:.1%}"
    console.print(f"the rest of the attention: {rest}", highlight=False)


def describe_request(explanation: Explanation) -> str:
    """Returns a text with user, time and place of the request."""
    when = format_time(explanation.timestamp_ms, explanation.tz_offset_min)
    where = format_place(explanation.place)
    return f"user {explanation.user_id}, {when} local time, at {where}, after {len(explanation.past)} actions"


def describe_shares(explanation: Explanation) -> str:
    """Returns a text with the shares of generator, crowd and past in both predictions."""

    def format_shares(shares: Shares) -> str:
        crowd = f", crowd candidates {shares.crowd:.1%}" if shares.crowd else ""
        return f"generator {shares.generator:.1%}{crowd}, past actions {shares.actions.sum():.1%}"

    return f"block: {format_shares(explanation.block_shares)}\nPOI:   {format_shares(explanation.poi_shares)}"


def tabulate_pois(explanation: Explanation, names: Mapping[str, str]) -> Table:
    """Makes the table of the most probable POIs."""
    table = _start("top POIs", "POI", "block", "probability", "of it copied", "km away", "visits before")
    for rank, poi in enumerate(explanation.pois, 1):
        name = f"{rank} {names.get(poi.poi_id, poi.poi_id)}"
        km = "" if math.isnan(poi.distance_km) else f"{poi.distance_km:.2f}"
        copied = f"{poi.from_visits:.0%}" if explanation.has_memory else ""
        table.add_row(name, str(poi.block_id), f"{poi.probability:.2%}", copied, km, str(poi.num_visits))
    return table


def tabulate_blocks(explanation: Explanation) -> Table:
    """Makes the table of the most probable blocks; the rest in one line."""
    table = _start("top blocks", "block", "probability", "centre")
    for block in explanation.blocks[:NUM_BLOCKS]:
        table.add_row(str(block.block_id), f"{block.probability:.2%}", format_place(block.place))
    rest = explanation.blocks[NUM_BLOCKS:]
    if rest:
        table.add_row(f"{len(rest)} more", f"{sum(block.probability for block in rest):.2%}", "")
    return table


def tabulate_actions(
    explanation: Explanation, names: Mapping[str, str], places: list[int] | IntArray, title: str
) -> Table:
    """Makes a table of some past actions; the shares are of the whole prediction."""
    table = _start(title, "local time", "POI", "block", "share of block", "share of POI")
    past = explanation.past
    for place in places:
        shares = (explanation.block_shares.actions[place], explanation.poi_shares.actions[place])
        cells = [f"{share:.2%}" if explanation.has_memory else "" for share in shares]
        when = format_time(int(past.timestamps_ms[place]), int(past.tz_offsets_min[place]))
        name = names.get(past.poi_ids[place], past.poi_ids[place])
        table.add_row(when, name, str(past.block_ids[place]), *cells)
    return table


@dataclass(frozen=True)
class PoiShare:
    """All visits to one POI: their number, and their shares of the block's and the POI's prediction."""

    poi_id: str
    num_visits: int
    of_block: float
    of_poi: float


def group_by_poi(explanation: Explanation, most: int) -> list[PoiShare]:
    """Returns the POIs of the past whose visits have the largest shares together, largest first."""
    shares = np.stack([explanation.block_shares.actions, explanation.poi_shares.actions])
    poi_ids, poi_of, visits = np.unique(
        np.array(explanation.past.poi_ids, dtype=str), return_inverse=True, return_counts=True
    )
    of_block, of_poi = (np.bincount(poi_of, weights=own, minlength=len(poi_ids)) for own in shares)
    order = np.argsort(-(of_block + of_poi), kind="stable")[:most]
    return [
        PoiShare(str(poi_ids[n]), int(visits[n]), float(of_block[n]), float(of_poi[n]))
        for n in order
        if of_block[n] + of_poi[n] > 0
    ]


def tabulate_visits(explanation: Explanation, names: Mapping[str, str]) -> Table:
    """Makes the table of the same shares, all visits to a POI together."""
    table = _start(
        "the same, all visits to a POI together", "POI", "visits", "share of block", "share of POI"
    )
    for own in group_by_poi(explanation, NUM_LEANED_ON):
        name = names.get(own.poi_id, own.poi_id)
        table.add_row(name, str(own.num_visits), f"{own.of_block:.2%}", f"{own.of_poi:.2%}")
    return table


def format_time(timestamp_ms: int, tz_offset_min: int) -> str:
    """Returns the local time, such as `Mon 2026-03-02 18:05`."""
    local = datetime.fromtimestamp(timestamp_ms / 1000, UTC) + timedelta(minutes=tz_offset_min)
    return f"{local:%a %Y-%m-%d %H:%M}"


def format_place(place: Place) -> str:
    """Returns longitude and latitude, such as `4.8800, 52.3100`."""
    return "an unknown place" if math.isnan(place[0]) else f"{place[0]:.4f}, {place[1]:.4f}"


def _start(title: str, *columns: str) -> Table:
    """Returns an empty table with words aligned left and numbers aligned right."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(
            name, justify="left" if name in ("POI", "category", "age", "local time") else "right"
        )
    return table
