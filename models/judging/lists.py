"""The lists that two systems show for the same requests, and which side each is shown on.

In: Parquet files with `request_id`, `rank` (1 = first) and `poi_id`, one per system; `user_id` in the first one.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from conf.errors import MissingInputError, SchemaError

COLUMNS = ("request_id", "rank", "poi_id")
LEFT, RIGHT = "left", "right"


@dataclass(frozen=True)
class Pair:
    """The lists of one request, best POI first.

    Attributes:
        request_id: the request.
        user_id: its user; figures have intervals by user.
        ours: POIs of the system that is judged.
        theirs: POIs of the system that it is compared with.
    """

    request_id: str
    user_id: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]

    def our_side(self, seed: int) -> str:
        """Returns the side on which our list is shown: left for half of the requests, in no order to be guessed."""
        digest = hashlib.sha256(f"{seed}/{self.request_id}".encode()).digest()
        return LEFT if digest[0] % 2 else RIGHT

    def sides(self, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the lists as shown, left and right."""
        return (self.ours, self.theirs) if self.our_side(seed) == LEFT else (self.theirs, self.ours)


def read_pairs(ours: Path, theirs: Path, *, top: int) -> list[Pair]:
    """Reads the first POIs of both lists of every request that both files hold, by request id.

    Raises:
        MissingInputError: a file does not exist, or the files share no request.
        SchemaError: a column is missing, or a request has a rank twice.
    """
    users: dict[str, str] = {}
    first, second = (_read_lists(path, top, users) for path in (ours, theirs))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise MissingInputError(
            what="a request that both lists answer", where=f"{ours} and {theirs}", needed_by="The comparison",
            remedy="Both files have to be made for the same requests.",
        )  # fmt: skip
    return [Pair(request, users.get(request, request), first[request], second[request]) for request in shared]


def _read_lists(path: Path, top: int, users: dict[str, str]) -> dict[str, tuple[str, ...]]:
    if not path.exists():
        raise MissingInputError(
            what="a file of lists", where=str(path), needed_by="The comparison",
            remedy="It is Parquet with request_id, rank and poi_id, such as candidates/ of poi_candidates --requests.",
        )  # fmt: skip
    table = pq.read_table(path)
    for name in COLUMNS:
        if name not in table.column_names:
            raise SchemaError(
                table=str(path), column=name, expected="int" if name == "rank" else "string",
                found=f"only {', '.join(table.column_names)}", remedy="Rename the column, then compare again.",
            )  # fmt: skip
    ranked: dict[str, dict[int, str]] = {}
    for row in table.to_pylist():
        own = ranked.setdefault(row["request_id"], {})
        if row["rank"] in own:
            raise SchemaError(
                table=str(path), column="rank", expected="unique within a request", found=f"rank {row['rank']} twice",
                example=row["request_id"], remedy="Write one row per request and rank, then compare again.",
            )  # fmt: skip
        own[row["rank"]] = row["poi_id"]
        if row.get("user_id"):
            users.setdefault(row["request_id"], row["user_id"])
    return {request: tuple(own[rank] for rank in sorted(own)[:top]) for request, own in ranked.items()}
