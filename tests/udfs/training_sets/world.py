"""A log of releases with everything that goes wrong, as Delta tables and as plain rows, and an oracle over the rows.

Every vector holds the number of its row, so a test can tell which row an answer was made from. Rows of each version are
kept as lists, and the oracle reads nothing else: it goes through releases, rows and slots one by one.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from conf.tables import TABLES

DAY_MS = 86_400_000
FIRST = date(2026, 1, 5)
NUM_DAYS, NUM_USERS, NUM_POIS = 24, 120, 60
OLD, NEW, CANDIDATE = "m/1", "m/2", "m/3"
TYPES = {
    "string": pa.string(), "bigint": pa.int64(), "int": pa.int32(), "date": pa.date32(), "double": pa.float64(),
    "float": pa.float32(), "boolean": pa.bool_(), "array<float>": pa.list_(pa.float32()),
    "map<string,bigint>": pa.map_(pa.string(), pa.int64()),
}  # fmt: skip
KEYS = {
    "user_embeddings": "user_id", "poi_embeddings": "poi_id", "poi_index": "poi_id", "ranking_scores": "request_id",
}  # fmt: skip
Row = dict[str, object]


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def start_ms(of: date) -> int:
    return (of - date(1970, 1, 1)).days * DAY_MS


@dataclass
class Tables:
    """Writes versions of tables and remembers the rows of each."""

    root: Path
    rows: dict[str, list[list[Row]]] = field(default_factory=lambda: defaultdict(list))
    numbers: int = 0

    def write(self, name: str, rows: list[Row]) -> int:
        """Writes all rows of a table as its next version and returns the number of the version."""
        contract = TABLES[name]
        names = [column for column in contract.column_names if column != "past_details"]
        schema = pa.schema([(column, TYPES[contract.column(column).type]) for column in names])
        table = pa.Table.from_pylist([{column: row.get(column) for column in names} for row in rows], schema)
        write_deltalake(str(self.root / name), table, mode="overwrite")
        self.rows[name].append([dict(row) for row in rows])
        return len(self.rows[name]) - 1

    def vector(self) -> list[float]:
        """Returns a vector that no other row has."""
        self.numbers += 1
        return [float(self.numbers % 1000), float(self.numbers // 1000)]


@dataclass
class World:
    """The tables, the releases (rows of their log) and the withdrawn numbers."""

    root: str
    tables: Tables
    releases: list[Row]
    withdrawn: set[int]
    slots: list[Row]
    by_key: dict[tuple[str, int], dict[object, list[Row]]] = field(default_factory=dict)

    def own(self, name: str, version: int, key: object) -> list[Row]:
        """Returns the rows of a version that belong to one user, POI or request, in the order written."""
        if (name, version) not in self.by_key:
            grouped: dict[object, list[Row]] = defaultdict(list)
            for row in self.tables.rows[name][version]:
                grouped[row[KEYS[name.removeprefix("backfilled_")]]].append(row)
            self.by_key[name, version] = grouped
        return self.by_key[name, version][key]


def build_world(root: Path, seed: int = 1) -> World:
    """Writes a month of releases: two models, late and repeated publications, a rollback, corrections, churn."""
    dice, tables = random.Random(seed), Tables(root)
    stored: dict[str, list[Row]] = {"user_embeddings": [], "poi_embeddings": [], "ranking_scores": []}
    slots: list[Row] = []
    releases: list[Row] = []
    for number in range(NUM_DAYS):
        today, model = day(number), OLD if number < 14 else NEW
        _open_and_close(dice, slots, number)
        versions = {"poi_index": tables.write("poi_index", slots)}
        is_first_of_model = number in (0, 14)
        again = [number] if number != 9 else [4, number]  # an older day is computed once more
        for one in again:
            _compute_day(dice, tables, stored, slots, day(one), model, everything=is_first_of_model)
        versions |= {name: tables.write(name, rows) for name, rows in stored.items()}
        if number == 3:
            continue  # the audit failed: computed and not published
        at = start_ms(today) + DAY_MS + dice.choice([1, 7_200_000, 7_200_001, DAY_MS - 1])
        if number == 17:
            at -= 3 * DAY_MS  # a clock that was wrong
        _publish(releases, today, versions, model, at)
        if number in (6, 15):  # the day is computed and published once more
            _compute_day(dice, tables, stored, slots, today, model, everything=False)
            versions = {**versions, **{name: tables.write(name, rows) for name, rows in stored.items()}}
            _publish(releases, today, versions, model, at + 3_600_000)
        if number == 11:
            back = releases[-2]
            _publish(releases, back["day"], back["table_versions"], back["model_version"], at + 5_000_000,
                     rollback_of=releases[-1]["release_id"])  # fmt: skip
    log = [{**row, "table_versions": list(row["table_versions"].items())} for row in releases]  # type: ignore[attr-defined]
    tables.write("releases", log)
    withdrawn = {2}
    tables.write("withdrawals", [{"release_id": 2, "withdrawn_ts_ms": 0, "reason": "planted", "run_id": "w"}])
    _backfill(dice, tables, slots)
    return World(str(root), tables, releases, withdrawn, slots)


def make_shown(world: World, num_rows: int, seed: int = 2) -> pa.Table:
    """Makes shown POIs at random times, and at the edges: of days, of publications, and of neither."""
    dice = random.Random(seed)
    edges = [at + more for row in world.releases for at in [row["published_ts_ms"]] for more in (-1, 0, 1)]  # type: ignore[operator]
    edges += [start_ms(day(number)) + more for number in range(-2, NUM_DAYS + 2) for more in (-1, 0, 1)]
    first, last = start_ms(day(-2)), start_ms(day(NUM_DAYS + 2))
    scored = [row for row in world.tables.rows["ranking_scores"][-1]]
    scored += [row for row in world.tables.rows["backfilled_ranking_scores"][-1]]
    rows: list[Row] = []
    for number in range(num_rows):
        time = dice.choice(edges) if dice.random() < 0.3 else dice.randrange(first, last)
        row: Row = {
            "request_id": f"x{number}", "user_id": f"u{dice.randrange(NUM_USERS + 5)}",
            "poi_id": f"p{dice.randrange(NUM_POIS + 3)}", "request_ts_ms": time, "label": dice.randrange(2),
        }  # fmt: skip
        if dice.random() < 0.3:  # a request that was scored on its day, or late
            known = dice.choice(scored)
            late = dice.choice([0, 0, 0, 1, -1])
            row |= {"request_id": known["request_id"], "poi_id": known["poi_id"], "user_id": known["user_id"]}
            row["request_ts_ms"] = start_ms(known["day"]) - late * DAY_MS + dice.randrange(DAY_MS)  # type: ignore[arg-type]
        if dice.random() < 0.01:
            row[dice.choice(["request_id", "user_id", "poi_id", "request_ts_ms"])] = None
        rows.append(row)
        if dice.random() < 0.02:
            rows.append(dict(row))
    fields = [(name, pa.int64() if name in ("request_ts_ms", "label") else pa.string()) for name in rows[0]]
    return pa.Table.from_pylist(rows, pa.schema(fields))


@dataclass(frozen=True)
class Answer:
    """The expected features of one row; the release is None where none is shown."""

    release_id: int | None = None
    features_day: date | None = None
    model_version: str | None = None
    user_embedding: tuple[float, ...] | None = None
    poi_embedding: tuple[float, ...] | None = None
    click_logit: float | None = None


def ask_oracle(world: World, row: Row, clock: str, model: str = "") -> Answer:
    """Answers one row by going through all releases, rows and slots."""
    time = row["request_ts_ms"]
    if time is None:
        return Answer()
    if model:
        return _of_backfill(world, row, model)
    if clock == "published":
        seen = [release for release in world.releases if release["published_ts_ms"] < time]  # type: ignore[operator]
        best = max(seen, key=lambda release: release["release_id"], default=None)  # type: ignore[arg-type,return-value]
    else:
        past = [one for one in _standing(world) if start_ms(one["day"]) + DAY_MS <= time]  # type: ignore[arg-type,operator]
        best = max(past, key=lambda release: release["day"], default=None)  # type: ignore[arg-type,return-value]
    if best is None:
        return Answer()
    if best["release_id"] in world.withdrawn:
        return Answer(release_id=best["release_id"])  # type: ignore[arg-type]
    found = _vectors(world, row, best)
    return Answer(
        release_id=best["release_id"], features_day=best["day"], model_version=best["model_version"],  # type: ignore[arg-type]
        user_embedding=found[0], poi_embedding=found[1], click_logit=_score(world, row, best, clock),
    )  # fmt: skip


def _standing(world: World) -> list[Row]:
    """Releases that count by the clock of days: neither withdrawn nor taken back, the last one of each day."""
    gone = {row["rollback_of"] for row in world.releases} - {None}
    kept = [row for row in world.releases if row["release_id"] not in gone | world.withdrawn]
    last: dict[object, Row] = {}
    for row in kept:
        last[row["day"]] = row
    return list(last.values())


def _vectors(world: World, row: Row, release: Row) -> list[tuple[float, ...] | None]:
    found: list[tuple[float, ...] | None] = []
    versions = release["table_versions"]
    for name, key in (("user_embeddings", "user_id"), ("poi_embeddings", "poi_id")):
        best: Row | None = None
        for stored in world.own(name, versions[name], row[key]):  # type: ignore[index]
            is_own = stored["model_version"] == release["model_version"]
            if is_own and stored["day"] <= release["day"] and (best is None or stored["day"] > best["day"]):  # type: ignore[operator]
                best = stored
        found.append(None if best is None else tuple(best["embedding"]))  # type: ignore[arg-type]
    slots = world.own("poi_index", versions["poi_index"], row["poi_id"])  # type: ignore[index]
    if not _is_live(slots, row["poi_id"], release["day"], always=date(1, 1, 1)):  # type: ignore[arg-type]
        found[1] = None
    return found


def _is_live(slots: list[Row], poi: object, on: date, *, always: date) -> bool:
    for slot in slots:
        known = slot["indexed_day"] <= on or slot["indexed_day"] == always  # type: ignore[operator]
        ended = slot["closed_day"] is not None and slot["closed_day"] <= on and slot["valid_to"] <= on  # type: ignore[operator]
        if slot["poi_id"] == poi and known and slot["valid_from"] <= on and not ended:  # type: ignore[operator]
            return True
    return False


def _score(world: World, row: Row, release: Row, clock: str) -> float | None:
    if clock == "published":
        sources = [release]
    else:
        asked = date(1970, 1, 1) + timedelta(days=row["request_ts_ms"] // DAY_MS)  # type: ignore[operator]
        own = [one for one in _standing(world) if one["model_version"] == release["model_version"]]
        sources = sorted((one for one in own if one["day"] >= asked), key=lambda one: one["day"])  # type: ignore[operator,return-value,arg-type]
    for source in sources:
        version = source["table_versions"]["ranking_scores"]  # type: ignore[index]
        for stored in world.own("ranking_scores", version, row["request_id"]):
            is_own = stored["poi_id"] == row["poi_id"]
            if (
                is_own
                and stored["day"] == source["day"]
                and stored["model_version"] == source["model_version"]
            ):
                return stored["click_logit"]  # type: ignore[return-value]
    return None


def _of_backfill(world: World, row: Row, model: str) -> Answer:
    asked = date(1970, 1, 1) + timedelta(days=row["request_ts_ms"] // DAY_MS)  # type: ignore[operator]
    covering: Row | None = None
    for one in world.tables.rows["backfills"][-1]:
        is_in = one["model_version"] == model and one["first_day"] <= asked <= one["last_day"]  # type: ignore[operator]
        if is_in and (covering is None or one["computed_ts_ms"] > covering["computed_ts_ms"]):  # type: ignore[operator]
            covering = one
    if covering is None:
        return Answer()
    before, since = asked - timedelta(days=1), covering["first_day"] - timedelta(days=1)  # type: ignore[operator]
    found: list[tuple[float, ...] | None] = []
    for name, key in (("backfilled_user_embeddings", "user_id"), ("backfilled_poi_embeddings", "poi_id")):
        best: Row | None = None
        for stored in world.own(name, -1, row[key]):
            is_own = stored["model_version"] == model
            if is_own and since <= stored["day"] <= before and (best is None or stored["day"] > best["day"]):  # type: ignore[operator]
                best = stored
        found.append(None if best is None else tuple(best["embedding"]))  # type: ignore[arg-type]
    slots = world.own("poi_index", -1, row["poi_id"])
    if not _is_live(slots, row["poi_id"], before, always=FIRST):
        found[1] = None
    logit = None
    for stored in world.own("backfilled_ranking_scores", -1, row["request_id"]):
        is_own = stored["poi_id"] == row["poi_id"]
        if is_own and stored["day"] == asked and stored["model_version"] == model:
            logit = stored["click_logit"]
    return Answer(None, before, model, found[0], found[1], logit)  # type: ignore[arg-type]


def _open_and_close(dice: random.Random, slots: list[Row], number: int) -> None:
    """The first day indexes most POIs; later days open, close and move some."""
    today = day(number)
    if number == 0:
        for poi in range(NUM_POIS - 20):
            # Some of the first day's POIs opened earlier, as their catalogue says.
            slots.append(_slot(poi, today, valid_from=today - timedelta(days=dice.choice([0, 400]))))
        return
    for slot in [slot for slot in slots if slot["closed_day"] is None and dice.random() < 0.02]:
        slot |= {"valid_to": today, "closed_day": today, "changed_day": today}
        if dice.random() < 0.6:
            slots.append(_slot(int(str(slot["poi_id"])[1:]), today, valid_from=today))
    if NUM_POIS - 20 + number <= NUM_POIS:
        slots.append(_slot(NUM_POIS - 21 + number, today, valid_from=today))


def _slot(poi: int, indexed: date, *, valid_from: date) -> Row:
    return {
        "index_version": 1, "poi_id": f"p{poi}", "block_id": 0, "inner_id": poi, "poi_lon": 4.9, "poi_lat": 52.4,
        "category_id": 1, "valid_from": valid_from, "valid_to": None, "indexed_day": indexed, "closed_day": None,
        "name": "", "text": "", "changed_day": indexed, "is_simulated": True,
    }  # fmt: skip


def _compute_day(
    dice: random.Random, tables: Tables, stored: dict[str, list[Row]], slots: list[Row], of: date, model: str,
    *, everything: bool,
) -> None:  # fmt: skip
    """Replaces a day's rows: vectors of everybody on a model's first day, of some later; scores of the day."""
    for name, rows in stored.items():
        stored[name] = [row for row in rows if row["day"] != of]
    stamps: Row = {"day": of, "model_version": model, "index_version": 1, "run_id": "r", "is_simulated": True}
    for user in range(NUM_USERS):
        if everything or dice.random() < 0.2:
            own = {"user_id": f"u{user}", "embedding": tables.vector(), "sequence_day": of}
            stored["user_embeddings"].append({**stamps, **own})
    for poi in {slot["poi_id"] for slot in slots if slot["closed_day"] is None}:
        if everything or dice.random() < 0.1:
            stored["poi_embeddings"].append(
                {**stamps, "poi_id": poi, "embedding": tables.vector(), "changed_day": of}
            )
    for number in range(12):
        late = of - timedelta(days=1) if number == 0 else of  # also scored the day before
        request = f"r{late}-{number}"
        for poi in dice.sample(range(NUM_POIS), 3):
            stored["ranking_scores"].append({
                **stamps, "request_id": request, "user_id": f"u{dice.randrange(NUM_USERS)}", "poi_id": f"p{poi}",
                "click_logit": tables.vector()[0] / 8 + tables.numbers // 1000, "score": 0.5,
            })  # fmt: skip


def _publish(
    releases: list[Row], of: object, versions: object, model: object, at: int, rollback_of: object = None
) -> None:
    releases.append({
        "release_id": len(releases) + 1, "day": of, "published_ts_ms": at, "table_versions": versions,
        "model_version": model, "index_version": 1, "rollback_of": rollback_of, "run_id": f"r{len(releases)}",
        "is_simulated": True,
    })  # fmt: skip


def _backfill(dice: random.Random, tables: Tables, slots: list[Row]) -> None:
    """Two ranges of one model that overlap, one apart, and rows of another model between them."""
    rows: dict[str, list[Row]] = {"user_embeddings": [], "poi_embeddings": [], "ranking_scores": []}
    ranges = [(CANDIDATE, 2, 9), (CANDIDATE, 7, 12), (OLD, 0, 20), (CANDIDATE, 16, 18)]
    log: list[Row] = []
    for at, (model, first, last) in enumerate(ranges):
        for number in range(first - 1, last + 1):
            of = day(number)
            kept = {
                name: [row for row in own if (row["day"], row["model_version"]) == (of, model)]
                for name, own in rows.items()
            }
            for name, own in kept.items():
                rows[name] = [row for row in rows[name] if row not in own]
            other = {name: [row for row in own if row["day"] == of] for name, own in rows.items()}
            for name in rows:
                rows[name] = [row for row in rows[name] if row["day"] != of]
            _compute_day(dice, tables, rows, slots, of, model, everything=number == first - 1)
            for name in rows:
                rows[name] += other[name]
        log.append({
            "model_version": model, "first_day": day(first), "last_day": day(last), "computed_ts_ms": at,
            "index_version": 1, "run_id": f"b{at}", "is_simulated": True,
        })  # fmt: skip
    for name, own in rows.items():
        tables.write(f"backfilled_{name}", own)
    tables.write("backfills", log)
