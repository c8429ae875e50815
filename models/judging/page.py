"""One HTML file on which people judge pairs of lists blindly, and one file of prompts for a language model.

The page shows the request, the user's past and two lists, with a map, and takes a choice by key: arrow left, arrow
right, arrow down (even), arrow up (back). It stores choices in the browser, exports them as JSON, and shows the shares
after the last pair. It loads nothing from elsewhere. Which side is ours is kept from the reader until then.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from conf.errors import CorruptInputError, MissingInputError
from models.judging.facts import Facts, Poi
from models.judging.lists import Pair

TEMPLATE = "page.html"
QUESTION = (
    "Which list would this user rather be shown now? Answer with one JSON object: "
    '{"choice": "left"}, {"choice": "right"} or {"choice": "even"}.'
)


def render_page(facts: Sequence[Facts], pairs: Sequence[Pair], *, seed: int, title: str) -> str:
    """Renders the page of the given pairs."""
    sides = {pair.request_id: pair.our_side(seed) for pair in pairs}
    sealed = base64.b64encode(json.dumps(sides).encode()).decode()
    # A name may hold "</script>": within a script only "<" is dangerous.
    data = json.dumps([own.as_json() for own in facts], allow_nan=False, default=str).replace("<", "\\u003c")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    # The data are JSON without "<", and the seal is base64.
    return environment.get_template(TEMPLATE).render(
        title=title, data=Markup(data), sealed=Markup(sealed), seed=seed
    )


def render_prompts(facts: Sequence[Facts]) -> str:
    """Renders one JSON line per pair: `request_id` and `prompt`."""
    return "".join(json.dumps({"request_id": own.request_id, "prompt": _prompt(own)}) + "\n" for own in facts)


def read_choices(path: Path) -> dict[str, str]:
    """Reads choices: the page's export, or JSON lines with `request_id` and `choice`.

    Raises:
        MissingInputError: there is no such file.
        CorruptInputError: it is neither.
    """
    if not path.is_file():
        raise MissingInputError(
            what="the file of choices", where=str(path), needed_by="The comparison",
            remedy="Export it from the page, or write one JSON object a line: request_id and choice.",
        )  # fmt: skip
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows: Any = json.loads(text) if text.lstrip().startswith("[") else [
            json.loads(line) for line in text.splitlines() if line.strip()
        ]  # fmt: skip
        return {str(row["request_id"]): str(row["choice"]) for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorruptInputError(
            path=str(path), expected="choices: request_id and choice of every pair", cause=repr(error)
        ) from error


def _prompt(facts: Facts) -> str:
    past = "\n".join(f"- {_line(poi)}" for poi in facts.past) or "- nothing is known"
    lists = (
        "\n".join(f"{rank}. {_line(poi)}" for rank, poi in enumerate(own, 1))
        for own in (facts.left, facts.right)
    )
    left, right = lists
    return (
        f"A user of a map asks for places on {facts.when} (local time).\nLatest places of the user:\n{past}\n\n"
        f"Left list:\n{left}\n\nRight list:\n{right}\n\n{QUESTION}"
    )


def _line(poi: Poi) -> str:
    distance = "" if poi.km is None else f", {poi.km} km away"
    return f"{poi.name} ({poi.category}{distance})"
