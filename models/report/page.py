"""The parts of a report page, and their rendering as HTML.

In: sections as plain values (tiles, bars, figures, tables, notes). Out: one HTML text that needs no other file and no
network. The template escapes all names from data; only the SVG of `plots.py` is inserted as markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATE = "template.html"


@dataclass(frozen=True)
class Tile:
    """One main figure; `tone` is good, warn, bad or empty."""

    label: str
    value: str
    hint: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Bar:
    """One line of a bar list; `share` is its length, 0 to 1."""

    label: str
    value: str
    share: float
    tone: str = ""


@dataclass(frozen=True)
class BarList:
    caption: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `legend` pairs names with colours. A wide one takes the whole row."""

    svg: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    is_wide: bool = False

    @property
    def markup(self) -> Markup:
        return Markup(self.svg)


@dataclass(frozen=True)
class TableView:
    """A table as text; cells of `text_columns` are aligned left, the rest are numbers.

    Attributes:
        strong_rows: numbers of rows to be set apart.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    strong_rows: tuple[int, ...] = ()

    @property
    def is_wide(self) -> bool:
        return len(self.header) > 4 or any(len(cell) > 60 for row in self.rows for cell in row)


@dataclass(frozen=True)
class Topic:
    """The topic of a section, also when its input is missing.

    Attributes:
        key: anchor.
        sees: one sentence: what is shown.
        alarm: one sentence: what would be alarming.
    """

    key: str
    title: str
    sees: str
    alarm: str


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        notes: what is missing, or must be known to read the figures right.
        links: text and relative address.
    """

    topic: Topic
    tiles: tuple[Tile, ...] = ()
    bars: tuple[BarList, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[TableView, ...] = ()
    notes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Headline:
    """The top band: facts in order, and whether and why some of the data is simulated."""

    title: str
    facts: tuple[tuple[str, str], ...]
    simulated: str = ""
    withdrawn: str = ""


def render_page(headline: Headline, sections: Sequence[Section]) -> str:
    """Renders the whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(headline=headline, sections=sections)


def list_counts(caption: str, counts: dict[str, int], *, tone: str = "", limit: int = 12) -> BarList:
    """Builds a bar per count, scaled to the largest; counts beyond `limit` are summed in one bar."""
    shown = dict(list(counts.items())[:limit])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown[f"{len(counts) - limit} others"] = rest
    largest = max(shown.values(), default=0) or 1
    bars = tuple(Bar(name, format_count(count), count / largest, tone) for name, count in shown.items())
    return BarList(caption, bars)


def format_count(count: int) -> str:
    """Writes 12345 as 12,345."""
    return f"{count:,}"


def format_share(part: float, whole: float) -> str:
    """Writes a part of a whole in per cent; a dash if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def format_figure(value: float | None, digits: int = 4) -> str:
    """Writes a metric; a dash if it could not be computed."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
