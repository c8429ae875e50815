"""Every way in: writes planted records in the format of a reader, several files each, and says how to count them.

A way is a folder of files. Files of one way differ in what they can say (types of columns, columns that are missing,
line ends), as exports of several days do.
"""

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.delivered import second_parser
from tests.bench.delivered.planted import (
    ANY,
    DAY,
    HOUR_MS,
    TEXT,
    Damage,
    Planted,
    Poi,
    Raw,
    damages_for,
    make_record,
    pick_pairs,
    plant,
)  # fmt: skip

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
GETNEXT_COLUMNS = (
    "user_id", "POI_id", "POI_catid", "POI_catname", "latitude", "longitude", "timezone", "UTC_time", "trajectory_id",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A reader with its files.

    Attributes:
        name: as in the report.
        source: `--source` of the night.
        settings: further settings, places in braces: {path}, {pois}.
        write: writes the files into a folder and returns what is in them.
        count: counts the records of the folder with the second parser.
        path: what `source.path` points at, below the folder.
    """

    name: str
    source: str
    write: Callable[["Writer"], list[Planted]]
    count: Callable[[Path], int]
    path: str = "files"
    settings: tuple[str, ...] = ()


class Writer:
    """Makes records and files of one way; sizes are records per damage."""

    def __init__(self, folder: Path, pois: Sequence[Poi], rng: random.Random, num_each: int) -> None:
        self.folder, self.pois, self.rng, self.num_each = folder, pois, rng, num_each
        self.number = 0
        (folder / "files").mkdir(parents=True)

    def records(
        self, form: str, *, share: float = 1.0, is_checkin: bool = True, numeric_ids: bool = False
    ) -> list[Planted]:
        """Returns records for a file of a form: each damage, pairs of damages, and as many without any; shuffled."""
        damages = damages_for(form.split())
        num_each = max(1, round(self.num_each * share))
        chosen: list[Sequence[Damage]] = [(damage,) for damage in damages for _ in range(num_each)]
        chosen += pick_pairs(damages, 5 * num_each, self.rng)
        chosen += [()] * max(len(chosen) // 2, 8 * len(self.pois) if share == 1.0 else 0)
        self.rng.shuffle(chosen)
        pois = [poi for poi in self.pois if not numeric_ids or poi.poi_id.isdigit()]
        return [
            plant(self._record(pois[count % len(pois)], is_checkin, numeric_ids), picked, self.rng)
            for count, picked in enumerate(chosen)
        ]

    def clean(self, number: int, *, is_checkin: bool = True) -> list[Planted]:
        """Returns records without damage."""
        return [self._record(self.rng.choice(self.pois), is_checkin, False) for _ in range(number)]

    def repeated(self, *, is_checkin: bool) -> list[Planted]:
        """Returns records that come twice: equal, with other content, and (actions) under another id."""
        found: list[Planted] = []
        for record in self.clean(self.num_each, is_checkin=is_checkin):
            found += [record, _copy(record, "equal")]
        for record in self.clean(self.num_each, is_checkin=is_checkin):
            other = _copy(record, "other_content", refused="duplicate_id")
            if is_checkin:  # the id is made of user, time and POI
                other.given["category"] = f"{record.poi.category} 2"
            else:
                other.given["time"] = record.truth["action_ts_ms"] + HOUR_MS  # type: ignore[operator]
            found += [record, other]
        if not is_checkin:
            for record in self.clean(self.num_each, is_checkin=False):
                other = _copy(record, "other_id", refused="repeated_action")
                other.given["action_id"], record.truth["action_id"] = f"b{record.tag[1:]}", ANY
                found += [record, other]
        return found

    def _record(self, poi: Poi, is_checkin: bool, numeric_ids: bool) -> Planted:
        self.number += 1
        return make_record(self.number, poi, self.rng, is_checkin=is_checkin, numeric_ids=numeric_ids)


def _copy(record: Planted, name: str, *, refused: str | None = None) -> Planted:
    return Planted(
        record.tag, record.poi, dict(record.given), dict(record.truth), {refused} if refused else set(),
        structure=name, damages=(name,),
    )  # fmt: skip


# --- JSON -------------------------------------------------------------------------------------------------------------

JSON_FORM = " ".join((*TEXT, "json", "utf8", "iso", "number", "user_place", "action", "file"))


def write_json(writer: Writer) -> list[Planted]:
    """Actions as JSON lines, arrays, fused objects and torn lines, in files of every kind."""
    rng, records = writer.rng, writer.records(JSON_FORM, is_checkin=False)
    records += writer.repeated(is_checkin=False)
    lines = [_json_object(record, rng) for record in records]
    for structure, size in (("fused", 2), ("fused", 3), ("array", 3), ("comma", 1), ("padded", 1)):
        for _ in range(writer.num_each // size):
            group = writer.clean(size, is_checkin=False)
            lines.append(_json_line(structure, [_json_object(record, rng) for record in group], rng))
            records += group
    for structure in ("text", "bracket", "truncated", "fused_truncated", "no_object"):
        for record in writer.clean(writer.num_each, is_checkin=False):
            record.refused, record.structure, record.damages = {"corrupt_record"}, structure, (structure,)
            line = _json_line(structure, [_json_object(record, rng)], rng)
            record.written = (line,)
            lines.append(line)
            records.append(record)
    order = list(range(len(lines)))
    rng.shuffle(order)
    third = len(order) // 3
    texts = ["\n".join(_with_blank_lines([lines[at] for at in part], rng)) for part in
             (order[:third], order[third:2 * third], order[2 * third:])]  # fmt: skip
    files = writer.folder / "files"
    (files / "a.json").write_text("\ufeff" + texts[0], encoding="utf-8")
    (files / "b.json").write_text(texts[1].replace("\n", "\r\n"), encoding="utf-8")
    with gzip.open(files / "c.json.gz", "wt", encoding="utf-8") as packed:
        packed.write(texts[2] + "\n")
    for name, indent in (("oneline.json", None), ("pretty.json", 1)):
        group = writer.clean(writer.num_each, is_checkin=False)
        content = [json.loads(_json_object(record, rng)) for record in group]
        (files / name).write_text(json.dumps(content, indent=indent), encoding="utf-8")
        records += group
    (files / f"day={DAY}").mkdir()
    group = writer.clean(writer.num_each, is_checkin=False)
    text = "\n".join(_json_object(record, rng) for record in group)
    (files / f"day={DAY}" / "part.json").write_text(text, encoding="utf-8")
    return records + group


def _json_object(record: Planted, rng: random.Random) -> str:
    given = record.given
    fields: dict[str, object] = {
        "tag": given["tag"],
        "user_id": given["user"], "time": given["time"], "poi_id": given["poi"], "action_type": given["type"],
        "user_geo": {"x": given["user_lon"], "y": given["user_lat"]},
        "poi_geo": {"x": given["poi_lon"], "y": given["poi_lat"]},
        "category": given["category"], "action_id": given["action_id"], "tz_offset_min": given["tz"],
    }  # fmt: skip
    record.written = _texts(fields.values())
    optional = [name for name, value in fields.items() if value is None and rng.random() < 0.5]
    for name in optional:  # a key that is not there is as good as a null
        del fields[name]
    return "{" + ", ".join(f"{json.dumps(name)}: {_spell(value)}" for name, value in fields.items()) + "}"


def _spell(value: object) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_spell(item)}" for name, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _json_line(structure: str, objects: Sequence[str], rng: random.Random) -> str:
    first = objects[0]
    lines = {
        "fused": rng.choice(("", " ", "\t")).join(objects),
        "array": f"[{', '.join(objects)}]",
        "comma": f"{first},",
        "padded": f"  {first}\t",
        "text": f"{first} garbage",
        "bracket": f"{first}]",
        "truncated": first[: -rng.randrange(2, 20)],
        "fused_truncated": f"{first}{first[:-10]}",
        "no_object": json.dumps(f"a text with {re.search('t[0-9]{7}', first).group()}"),  # type: ignore[union-attr]
    }
    return lines[structure]


def _with_blank_lines(lines: Sequence[str], rng: random.Random) -> list[str]:
    return [part for line in lines for part in ((line, "") if rng.random() < 0.01 else (line,))]


# --- text tables ------------------------------------------------------------------------------------------------------

CSV_FORM = " ".join((*TEXT, "untyped", "utf8", "iso", "clock"))
TSV_FORM = " ".join((*TEXT, "untyped", "iso", "clock"))


def write_csv(writer: Writer) -> list[Planted]:
    """Check-ins as GETNext's CSV: plain, with a mark and line ends of Windows, packed, other and fewer columns."""
    rng, records = writer.rng, writer.records(CSV_FORM)
    records += writer.repeated(is_checkin=True)
    quoted = writer.clean(writer.num_each)
    for record in quoted:
        record.given["category"] = rng.choice(('Bar, "Pub"', "Caf\u00e9\nDiner", "A\r\nB", "x,y,"))
        record.damages = ("quoted",)
    records += quoted
    rows = [(record, _csv_row(record)) for record in records]
    torn = writer.clean(2 * writer.num_each)
    for record in torn:
        row = _csv_row(record)
        row = row[:6] if rng.random() < 0.5 else [*row[:3], "surplus", *row[3:], "surplus"]
        if len(row) < 7:
            row[2] = record.tag
        record.refused, record.damages = {"corrupt_record"}, ("torn",)
        record.written = _texts(row)
        rows.append((record, row))
    records += torn
    rng.shuffle(rows)
    files, half = writer.folder / "files", len(rows) // 2
    _write_csv(files / "a.csv", GETNEXT_COLUMNS, [row for _, row in rows[:half]], rng)
    _write_csv(
        files / "b.csv", GETNEXT_COLUMNS, [row for _, row in rows[half:]], rng, end="\r\n", mark="\ufeff"
    )
    group = writer.clean(writer.num_each)
    order = list(reversed(GETNEXT_COLUMNS))
    _write_csv(files / "c.csv.gz", order, [_csv_row(record)[::-1] for record in group], rng)
    short = writer.clean(writer.num_each)
    at = GETNEXT_COLUMNS.index("timezone")
    for record in short:
        record.repairs.add("tz_missing")
    without = [[*row[:at], *row[at + 1 :]] for row in map(_csv_row, short)]
    _write_csv(files / "d.csv", [*GETNEXT_COLUMNS[:at], *GETNEXT_COLUMNS[at + 1 :]], without, rng)
    return records + group + short


def _csv_row(record: Planted) -> list[str]:
    given = record.given
    fields = (given["user"], given["poi"], "c", given["category"], given["poi_lat"], given["poi_lon"], given["tz"],
              clock(given["time"]), given["tag"])  # fmt: skip
    record.written = _texts(fields)
    return ["" if value is None else str(value) for value in fields]


def _write_csv(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    rng: random.Random,
    *,
    end: str = "\n",
    mark: str = "",
) -> None:
    buffer = io.StringIO(newline="")
    buffer.write(mark)
    sheet = csv.writer(buffer, lineterminator=end)
    sheet.writerow(header)
    for row in rows:
        sheet.writerow(row)
        if rng.random() < 0.01:
            buffer.write(end)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(buffer.getvalue().encode()))
    else:
        path.write_bytes(buffer.getvalue().encode())


def write_tsv(writer: Writer) -> list[Planted]:
    """Check-ins as the raw TSMC2014 TSV: Latin-1, no header, long times."""
    rng, records = writer.rng, writer.records(TSV_FORM)
    records += writer.repeated(is_checkin=True)
    quoted = writer.clean(writer.num_each)
    for record in quoted:
        record.given["category"] = rng.choice(('Bar, "Pub"', "Caf\u00e9", '"open', "back\\slash"))
        record.damages = ("quoted",)
    records += quoted
    lines = ["\t".join(_tsv_row(record, rng)) for record in records]
    torn = writer.clean(writer.num_each)
    for record in torn:
        row = [record.tag, *_tsv_row(record, rng)[1:]][: rng.randrange(2, 8)]
        record.refused, record.damages, record.given = {"corrupt_record"}, ("torn",), dict(enumerate(row))  # type: ignore[arg-type]
        record.written = tuple(text for text in row if text)
        lines.append("\t".join(row))
    records += torn
    rng.shuffle(lines)
    half = len(lines) // 2
    files = writer.folder / "files"
    text = "\n".join(_with_blank_lines(lines[:half], rng)) + "\n"
    (files / "a.txt").write_bytes(text.encode("latin-1"))
    (files / "b.txt").write_bytes("\r\n".join(lines[half:]).encode("latin-1"))
    return records


def _tsv_row(record: Planted, rng: random.Random) -> list[str]:
    given = record.given
    time = given["time"]
    spelled = long_clock(time) if isinstance(time, int) and rng.random() < 0.8 else clock(time)
    fields = (given["user"], given["poi"], given["tag"], given["category"], given["poi_lat"], given["poi_lon"],
              given["tz"], spelled)  # fmt: skip
    record.written = _texts(fields)
    return ["" if value is None else str(value) for value in fields]


def clock(time: object) -> object:
    """Spells epoch milliseconds as a clock of UTC; anything else stays."""
    if not isinstance(time, int):
        return time
    return (EPOCH + timedelta(milliseconds=time)).strftime("%Y-%m-%d %H:%M:%S")


def long_clock(time: int) -> str:
    """Spells epoch milliseconds as Twitter and Foursquare do."""
    return (EPOCH + timedelta(milliseconds=time)).strftime("%a %b %d %H:%M:%S +0000 %Y")


# --- Parquet ----------------------------------------------------------------------------------------------------------

UTC_US, NAIVE_NS, UTC_NS, NAIVE_MS = (
    pa.timestamp("us", tz="UTC"), pa.timestamp("ns"), pa.timestamp("ns", tz="UTC"), pa.timestamp("ms"),
)  # fmt: skip
TEXT_IDS = "text_user text_poi utf8 catalogue"


def write_checkins(writer: Writer) -> list[Planted]:
    """A folder of check-ins: columns of text, numbers, floats, timestamps of every unit; without optional ones."""
    base = writer.folder / "files" / "checkins.parquet"
    base.mkdir()
    text, number, real = pa.string(), pa.int64(), pa.float64()
    names = (
        "user_id",
        "poi_id",
        "latitude",
        "longitude",
        "utc_time",
        "tz_offset_min",
        "category",
        "category_id",
    )
    kinds = {
        "text": ((" ".join((*TEXT, "utf8", "iso", "clock", "catalogue"))), (text,) * 8, False),
        "typed": (TEXT_IDS, (text, text, real, real, UTC_US, pa.int32(), text, text), False),
        "numbers": ("", (number, number, real, real, UTC_NS, pa.int16(), text, text), True),
        "floats": ("float_user float_poi float_tz", (real, real, pa.float32(), real, NAIVE_NS, real, text, text), True),
    }  # fmt: skip
    found: list[Planted] = []
    for name, (form, types, numeric) in kinds.items():
        share = {"text": 1.0, "typed": 0.5}.get(name, 0.25)
        records = writer.records(form, share=share, numeric_ids=numeric)
        records += writer.repeated(is_checkin=True) if name == "typed" else []
        writer.rng.shuffle(records)
        rows = [_checkin_row(record) for record in records]
        if name == "text":
            rows = [[*row[:4], clock(row[4]), *row[5:]] for row in rows]
        _write_parquet(base / f"{name}.parquet", names, types, rows)
        found += records
    group = writer.clean(writer.num_each)
    for record in group:
        record.repairs.add("tz_missing")
    kept = [0, 1, 2, 3, 4, 7]
    rows = [[row[at] for at in kept] for row in map(_checkin_row, group)]
    _write_parquet(
        base / "short.parquet", [names[at] for at in kept], (text, text, real, real, NAIVE_MS, text), rows
    )
    _write_catalogue(writer)
    return found + group


def _checkin_row(record: Planted) -> list[object]:
    given = record.given
    row = [given["user"], given["poi"], given["poi_lat"], given["poi_lon"], given["time"], given["tz"],
           given["category"], given["tag"]]  # fmt: skip
    record.written = _texts(row)
    return row


def _write_catalogue(writer: Writer) -> None:
    pois = writer.pois
    table = pa.table({
        "poi_id": [poi.poi_id for poi in pois], "latitude": [poi.lat for poi in pois],
        "longitude": [poi.lon for poi in pois], "name": [f"POI {poi.poi_id}" for poi in pois],
        "category": [poi.category for poi in pois],
    })  # fmt: skip
    pq.write_table(table, writer.folder / "files" / "pois.parquet")


def write_actions_parquet(writer: Writer) -> list[Planted]:
    """Actions in the paper's form as Parquet: times as numbers, floats, text and timestamps; with a catalogue."""
    base = writer.folder / "files" / "actions.parquet"
    base.mkdir()
    text, real = pa.string(), pa.float64()
    place = pa.struct({"x": real, "y": real})
    names = ("user_id", "time", "poi_id", "poi_geo", "user_geo", "category", "action_type", "action_id",
             "tz_offset_min", "tag")  # fmt: skip
    words = pa.struct({"x": text, "y": text})
    kinds = {
        "typed": (f"{TEXT_IDS} number user_place action file", (text, pa.int64(), text, place, place, text, text, text, pa.int32(), text)),
        "floats": (f"{TEXT_IDS} float_time float_tz user_place action file", (text, real, text, place, place, text, text, text, real, text)),
        "text": (f"{' '.join(TEXT)} utf8 iso number catalogue user_place action file", (text, text, text, words, words, text, text, text, text, text)),
        "moments": (f"{TEXT_IDS} user_place action file", (text, UTC_NS, text, place, place, text, text, text, pa.int64(), text)),
    }  # fmt: skip
    found: list[Planted] = []
    for name, (form, types) in kinds.items():
        records = writer.records(form, share={"text": 1.0, "typed": 0.5}.get(name, 0.25), is_checkin=False)
        records += writer.repeated(is_checkin=False) if name == "typed" else []
        writer.rng.shuffle(records)
        _write_parquet(base / f"{name}.parquet", names, types, [_action_row(record) for record in records])
        found += records
    group = writer.clean(writer.num_each, is_checkin=False)
    for record in group:
        record.structure = "short"
        record.repairs.add("tz_missing")
        record.truth |= {"user_lon": None, "user_lat": None, "action_id": ANY}
    kept = [0, 1, 2, 3, 6, 9]
    rows = [[row[at] for at in kept] for row in map(_action_row, group)]
    _write_parquet(
        base / "short.parquet", [names[at] for at in kept], (text, pa.int64(), text, place, text, text), rows
    )
    _write_catalogue(writer)
    return found + group


def _action_row(record: Planted) -> list[object]:
    given = record.given
    row = [
        given["user"], given["time"], given["poi"], {"x": given["poi_lon"], "y": given["poi_lat"]},
        {"x": given["user_lon"], "y": given["user_lat"]}, given["category"], given["type"], given["action_id"],
        given["tz"], given["tag"],
    ]  # fmt: skip
    record.written = _texts(row)
    return row


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    """Returns the texts among values, which have to be found again in a refused record."""
    return tuple(str(value) for value in values if isinstance(value, str) and value)


def _write_parquet(
    path: Path, names: Sequence[str], types: Sequence[pa.DataType], rows: Sequence[Sequence[object]]
) -> None:
    columns = [pa.array([_as_type(row[at], kind) for row in rows], kind) for at, kind in enumerate(types)]
    pq.write_table(pa.table(columns, names=list(names)), path, row_group_size=20_000)


def _as_type(value: Any, kind: pa.DataType) -> object:
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {name: _as_type(item, kind.field(name).type) for name, item in value.items()}
    if pa.types.is_timestamp(kind):
        per_ms = {"ms": 1, "us": 1000, "ns": 1_000_000}[kind.unit]
        return int(value) * per_ms
    if pa.types.is_integer(kind):
        return int(value)
    if pa.types.is_floating(kind):
        return float(value)
    return str(value)


WAYS: tuple[Way, ...] = (
    Way("actions_json", "actions", write_json, lambda folder: second_parser.count_json(folder / "files")),
    Way("getnext_csv", "getnext", write_csv, lambda folder: second_parser.count_csv(folder / "files")),
    Way("tsmc_tsv", "tsmc", write_tsv, lambda folder: second_parser.count_tsv(folder / "files")),
    Way(
        "checkins_parquet", "checkins", write_checkins,
        lambda folder: second_parser.count_parquet(folder / "files" / "checkins.parquet"),
    ),
    Way(
        "actions_parquet", "actions", write_actions_parquet,
        lambda folder: second_parser.count_parquet(folder / "files" / "actions.parquet"),
        path="files/actions.parquet", settings=("source.pois_path={folder}/files/pois.parquet",),
    ),
)  # fmt: skip
