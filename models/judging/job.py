"""The job behind `python -m models compare`: lists of two systems, judged by values, people or a language model.

    python -m models compare --ours A.parquet --theirs B.parquet --values VALUES.parquet      known values judge
    python -m models compare --ours A.parquet --theirs B.parquet --requests R --page OUT.html  people judge, blindly
    python -m models compare --ours A.parquet --theirs B.parquet --requests R --prompts OUT    a language model judges
    python -m models compare --ours A.parquet --theirs B.parquet --choices FILE                counts their choices

Values are Parquet with `request_id`, `poi_id` and `value`. A choice file is the page's export, or JSON lines with
`request_id` and `choice` (left, right, even). The seed decides which side is ours: give the same one to all commands.
"""

import logging
from pathlib import Path

import pyarrow.parquet as pq

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, SettingsError
from conf.files import write_whole
from models.judging.facts import gather_facts
from models.judging.lists import Pair, read_pairs
from models.judging.page import read_choices, render_page, render_prompts
from models.judging.verdicts import Tally, judge_by_values, tally, tally_lists, unblind

LOGGER = logging.getLogger(__name__)


def run_compare(context: JobContext) -> JobSummary:
    """Compares two systems.

    Raises:
        SettingsError: not exactly one judge is named, or `--requests` is missing.
        MissingInputError, SchemaError, CorruptInputError: a file does not exist or fit.
    """
    options = context.options
    given = [name for name in ("values", "page", "prompts", "choices") if getattr(options, name) is not None]
    if len(given) != 1:
        raise SettingsError(where="the command line", key="--values, --page, --prompts or --choices",
                            problem=f"one of them is needed, {len(given)} are given")  # fmt: skip
    pairs = read_pairs(options.ours, options.theirs, top=options.top)
    notes: dict[str, object] = {"pairs": len(pairs), "seed": options.seed}
    if options.values is not None:
        values = read_values(options.values, pairs)
        lists, ranks = judge_by_values(pairs, values, options.margin)
        by_rank = tally([user for user, _ in ranks], [verdict for _, verdict in ranks])
        notes |= {
            "lists": _report(tally_lists(pairs, lists), "lists"),
            "pois": _report(by_rank, "POIs by rank"),
        }
    elif options.choices is not None:
        verdicts = unblind(read_choices(options.choices), pairs, options.seed, source=str(options.choices))
        notes |= {"lists": _report(tally_lists(pairs, verdicts), "lists")}
    else:
        if options.requests is None:
            raise SettingsError(
                where="the command line", key="--requests", problem="judges need to know them"
            )
        facts = gather_facts(context.settings.storage.root, options.requests, pairs, seed=options.seed)
        path: Path = options.page or options.prompts
        is_page = options.page is not None
        text = (
            render_page(facts, pairs, seed=options.seed, title="Two lists")
            if is_page
            else render_prompts(facts)
        )
        if not context.dry_run:
            write_whole(path, text)
        notes["file"] = str(path)
    return JobSummary(rows_in=len(pairs), notes=notes)


def read_values(path: Path, pairs: list[Pair]) -> dict[tuple[str, str], float]:
    """Reads the value of every POI of every request.

    Raises:
        MissingInputError: the file does not exist, or a POI of a list has no value.
    """
    if not path.exists():
        raise MissingInputError(what="the file of values", where=str(path), needed_by="The comparison",
                                remedy="It is Parquet with request_id, poi_id and value.")  # fmt: skip
    table = pq.read_table(path, columns=["request_id", "poi_id", "value"])
    keys = zip(table["request_id"].to_pylist(), table["poi_id"].to_pylist(), strict=True)
    values = dict(zip(keys, table["value"].to_pylist(), strict=True))
    shown = {(pair.request_id, poi) for pair in pairs for poi in (*pair.ours, *pair.theirs)}
    missing = sorted(shown - values.keys())
    if missing:
        raise MissingInputError(
            what=f"the value of POI {missing[0][1]!r} in request {missing[0][0]!r} and {len(missing) - 1} others",
            where=str(path), needed_by="The comparison", remedy="Every POI of both lists needs a value.",
        )  # fmt: skip
    return values


def _report(found: Tally, what: str) -> dict[str, object]:
    shares = ", ".join(f"{name} {100 * own.value:.1f} % ({100 * own.low:.1f} to {100 * own.high:.1f})"
                       for name, own in found.shares.items())  # fmt: skip
    LOGGER.info("%d %s: %s", found.pairs, what, shares)
    return found.as_json()
