"""Compares what a night made of planted records with the truth: every row, every column, every reason.

Tables are read with another engine than the one that wrote them.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.bench.delivered.planted import ANY, DAY, Planted
from tests.cases.foreign_cases import Json, read_rows

TAG = re.compile(r"t\d{7}")
COLUMNS = (
    "action_id", "user_id", "poi_id", "action_ts_ms", "event_date", "tz_offset_min", "user_lon", "user_lat", "poi_lon",
    "poi_lat", "category", "action_type_id", "repairs", "day", "index_version", "is_simulated",
)  # fmt: skip
MAX_EXAMPLES = 2


@dataclass
class Verdict:
    """What became of the records of one way.

    Attributes:
        counts: records and where they went.
        unexplained: records of the files that are neither delivered, nor refused, nor dropped, nor later than the day.
        wrong: number of wrong records by kind of damage and of mistake.
        examples: a few of each.
    """

    counts: dict[str, int]
    unexplained: int
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, record: Planted | None, mistake: str, example: str) -> None:
        """Counts a mistake."""
        damages = "+".join(record.damages) or "no damage" if record else "unknown"
        kind = f"{damages}: {mistake}"
        self.wrong[kind] += 1
        if len(self.examples[kind]) < MAX_EXAMPLES:
            self.examples[kind].append(example)


def judge(root: str, records: Sequence[Planted], summary: Json, *, in_files: int, table: str) -> Verdict:
    """Compares the tables of a warehouse with the truth.

    Args:
        root: the warehouse.
        records: what was planted.
        summary: the summary line of the night.
        in_files: records that the second parser counts.
        table: the raw table that the records were delivered into.
    """
    notes = summary["notes"]
    source = next(
        (content for content in notes.values() if isinstance(content, dict) and "records" in content), {}
    )
    later = source.get("records", {}).get("after_the_day", 0)
    dropped = notes["clean_actions"]["rows"]["dropped"]
    raw, accepted = read_rows(root, table), read_rows(root, "cleaned_actions")
    refused = [row for row in read_rows(root, "quarantined_rows") if row["source_table"] == table]
    counts = {"in_files": in_files, "planted": len(records), "raw": len(raw), "later": later,
              "accepted": len(accepted), "refused": len(refused), "dropped": dropped}  # fmt: skip
    unexplained = (
        abs(in_files - len(raw) - later)
        + abs(in_files - len(records))
        + abs(len(raw) - len(accepted) - len(refused) - dropped)
    )
    verdict = Verdict(counts, unexplained)
    _judge_accepted(verdict, records, accepted, _names_of_categories(root))
    judge_refused(verdict, records, refused)
    expected_later = sum(record.is_later for record in records)
    if expected_later != later:
        verdict.note(None, f"later {later}, not {expected_later}", "")
    return verdict


def _names_of_categories(root: str) -> Mapping[object, object]:
    return {row["category_id"]: row["category"] for row in read_rows(root, "categories")}


def _judge_accepted(
    verdict: Verdict,
    records: Iterable[Planted],
    accepted: Iterable[Json],
    categories: Mapping[object, object],
) -> None:
    found: dict[object, list[Json]] = defaultdict(list)
    for row in accepted:
        found[row["user_id"]].append({**row, "category": categories.get(row["category_id"])})
    by_user: dict[object, list[Planted]] = defaultdict(list)
    for record in records:
        if not (record.refused or record.is_later or record.structure == "equal"):
            by_user[record.truth["user_id"]].append(record)
    for user, wanted in by_user.items():
        rows = found.pop(user, [])
        if len(rows) != len(wanted):
            verdict.note(wanted[0], f"{len(rows)} rows accepted, not {len(wanted)}", _show(wanted[0]))
            continue
        for record, row in zip(wanted, rows, strict=True):
            for name, want, have in _differences(record, row):
                verdict.note(record, f"{name} is wrong", f"{have!r}, not {want!r}: {_show(record)}")
    for user, rows in found.items():
        verdict.note(None, "accepted, and should not be", f"{user!r}: {rows[0]}")


def _differences(record: Planted, row: Json) -> Iterator[tuple[str, object, object]]:
    time = record.truth["action_ts_ms"]
    truth = {
        **record.truth,
        "event_date": datetime.fromtimestamp(time / 1000, UTC).date(),  # type: ignore[operator]
        "repairs": sorted(record.repairs),
        "day": DAY,
        "index_version": 1,
        "is_simulated": False,
    }
    for name in COLUMNS:
        if truth[name] != ANY and truth[name] != row[name]:
            yield name, truth[name], row[name]


def judge_refused(
    verdict: Verdict,
    records: Iterable[Planted],
    refused: Iterable[Json],
    times: Callable[[Planted], int] = lambda record: 1,
) -> None:
    """Compares refused rows with the truth: is each record refused, for the right reason, with its own text?

    Args:
        verdict: takes the mistakes.
        records: what was planted.
        refused: rows with `reason` and `payload`.
        times: rows of a record.
    """
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in refused:
        payload = json.loads(row["payload"])
        text = payload.get("record") or row["payload"]
        tags = TAG.findall(text)
        if not tags:
            verdict.note(None, f"refused without its record ({row['reason']})", row["payload"][:300])
            continue
        found[tags[0]].append((row["reason"], text))
    by_tag: dict[str, list[Planted]] = defaultdict(list)
    for record in records:
        if record.refused and not record.is_later:
            by_tag[record.tag].append(record)
    for tag, wanted in by_tag.items():
        rows = found.pop(tag, [])
        expected = [record for record in wanted for _ in range(times(record))]
        if len(rows) != len(expected):
            problem = f"{len(rows)} times refused, not {len(expected)}"
            verdict.note(wanted[0], problem, f"{wanted[0].reason}: {_show(wanted[0])}")
            continue
        for record, (reason, text) in zip(expected, rows, strict=True):
            if reason != record.reason:
                verdict.note(record, f"refused as {reason}, not {record.reason}", _show(record))
            missing = [value for value in record.written if not _holds(text, value.strip())]
            # Of two rows with one tag it is not said which one was refused.
            if missing and record.structure not in ("other_id", "other_content", "row"):
                verdict.note(
                    record, "the record is not kept as it came", f"{missing[:2]} not in {text[:300]}"
                )
    for tag, rows in found.items():
        verdict.note(None, f"refused as {rows[0][0]}, and should not be", f"{tag}: {rows[0][1][:300]}")


def _holds(text: str, value: str) -> bool:
    """Tells whether a text, or a value of the JSON that it is, holds a value."""
    try:
        values = list(_leaves(json.loads(text)))
    except ValueError:
        values = []
    return value in text or value in values


def _leaves(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        for item in content.values():
            yield from _leaves(item)
    else:
        yield str(content)


def _show(record: Planted) -> str:
    return str(record.given)[:400]


def judge_pois(verdict: Verdict, root: str, records: Sequence[Planted]) -> None:
    """Compares `poi_index` and the refused rows of `raw_pois` with the truth; the tag of a POI is its address."""
    found = {row["poi_id"]: row for row in read_rows(root, "poi_index")}
    for record in records:
        if record.refused or record.structure == "equal":
            continue
        row = found.pop(record.truth["poi_id"], None)
        if row is None:
            verdict.note(record, "not in the index", _show(record))
            continue
        for name, want in record.truth.items():
            if row[name] != want:
                verdict.note(record, f"{name} is wrong", f"{row[name]!r}, not {want!r}: {_show(record)}")
    for poi_id in found:
        verdict.note(None, "a POI in the index that should not be there", str(poi_id))
    refused = [row for row in read_rows(root, "quarantined_rows") if row["source_table"] == "raw_pois"]
    judge_refused(verdict, records, refused)


def judge_profiles(verdict: Verdict, root: str, records: Sequence[Planted]) -> None:
    """Compares the number of profile attributes of every user and the refused rows with the truth."""
    wanted: Counter[str] = Counter()
    for record in records:
        if not record.refused and record.structure != "equal":
            wanted[str(record.given["user"]).strip()] += 1
    for row in read_rows(root, "action_sequences"):
        # Two attributes may share a bucket, so there may be fewer ids, not more.
        number = len(row["profile_ids"])
        if not min(1, wanted[row["user_id"]]) <= number <= wanted[row["user_id"]]:
            verdict.note(
                None, "profile_ids are wrong", f"{row['user_id']}: {number}, not {wanted[row['user_id']]}"
            )
    refused = [row for row in read_rows(root, "quarantined_rows") if row["source_table"] == "raw_profiles"]
    judge_refused(verdict, records, refused)


def judge_samples(
    verdict: Verdict, root: str, records: Sequence[Planted], last_places: Mapping[object, tuple[float, float]]
) -> None:
    """Compares `ranking_samples` and the refused rows of `raw_impressions` with the truth.

    Args:
        verdict: takes the mistakes.
        root: the warehouse.
        records: requests that were planted.
        last_places: by user, where the last action was: the place of a request that does not say its own.
    """
    found = {row["request_id"]: row for row in read_rows(root, "ranking_samples")}
    for record in records:
        if (record.refused and record.structure != "row") or record.structure == "equal":
            continue
        row = found.pop(record.truth["request_id"], None)
        if row is None:
            verdict.note(record, "no sample", _show(record))
            continue
        truth = {
            "user_id": record.truth["user_id"], "request_ts_ms": record.truth["request_ts_ms"],
            "candidate_poi_ids": record.truth["shown"],
            "labels": [1, *[0] * (len(record.truth["shown"]) - 1)],  # type: ignore[arg-type]
        }  # fmt: skip
        for name, want in truth.items():
            if row[name] != want:
                verdict.note(record, f"{name} is wrong", f"{row[name]!r}, not {want!r}: {_show(record)}")
        place = (row["user_lon"], row["user_lat"])
        unknown = any(name.startswith("place_") for name in record.damages)
        if place != (last_places[row["user_id"]] if unknown else (record.poi.lon, record.poi.lat)):
            verdict.note(record, "the place is wrong", f"{place}: {_show(record)}")
    for request_id in found:
        verdict.note(None, "a sample that should not be there", str(request_id))
    refused = [row for row in read_rows(root, "quarantined_rows") if row["source_table"] == "raw_impressions"]
    judge_refused(verdict, records, refused, times=lambda record: 1 if record.structure == "row" else 3)


def judge_answers(
    verdict: Verdict,
    records: Sequence[Planted],
    answered: Iterable[tuple[object, object]],
    refused: Iterable[Json],
) -> None:
    """Compares which requests were answered, for whom, and the refused ones with the truth."""
    found = set(answered)
    for record in records:
        key = (record.truth["request_id"], record.truth["user_id"])
        if not record.refused and record.structure != "equal" and key not in found:
            verdict.note(record, "not answered", _show(record))
    expected = {
        (record.truth["request_id"], record.truth["user_id"]) for record in records if not record.refused
    }
    for key in found - expected:
        verdict.note(None, "answered, and should not be", str(key))
    judge_refused(verdict, records, refused)
