"""Measures the code itself: floors and circles of imports between rooms, lines, lengths of functions, comments.

    python -m tests.bench.structure

A room is a package (`models.training`), or a file that lies beside the packages (`models.config`). The floor of a room
is one more than the highest floor of the rooms it imports; `__main__` stands above and is not counted. Imports within
functions count like others. Code lines are those without blanks, comments and docstrings. The files that one training
batch passes from rows to loss, and one action from its raw table to a release, are found by tracing.
"""

import argparse
import ast
import io
import statistics
import sys
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from conf.results import record
from conf.tokens import TokenLayout
from models.config import DecoderConfig
from models.data.catalogue import Catalogue
from models.network.decoder import SpacetimeDecoder
from models.training.pretrain import PretrainStage
from tests import small_city
from tests.models import planted_city as city

COMMAND = "make bench-structure"
PRODUCT = ("conf", "etl", "models", "udfs", "airflow_dags")
LIMITS = {"models": 10, "etl": 5, "udfs": 4}
MOST_FILES = 15
JOBS_OF_ACTION = (
    ("etl", "clean_actions"),
    ("etl", "action_sequences"),
    ("udfs", "user_embeddings"),
    ("udfs", "publish"),
)
Graph = Mapping[str, set[str]]


def module_of(path: Path) -> str:
    """Returns the dotted name of a file."""
    return ".".join(path.with_suffix("").parts)


def room_of(module: str) -> str:
    """Returns the room of a module: its package below the top-level folder, or itself."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else module


def imports_of(path: Path, modules: set[str]) -> Iterator[str]:
    """Yields the modules of ours that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & modules or {node.module} & modules
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules


def draw_rooms(package: str, folder: Path = Path()) -> Graph:
    """Returns by room the rooms of the same package that it imports."""
    paths = {module_of(path.relative_to(folder)): path for path in (folder / package).rglob("*.py")}
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, path in paths.items():
        room = room_of(module)
        rooms[room] |= {room_of(other) for other in imports_of(path, set(paths))} - {room, package}
    return {room: others for room, others in rooms.items() if not room.endswith(("__main__", "__init__"))}


def find_circles(rooms: Graph) -> list[tuple[str, str]]:
    """Returns the pairs of rooms that reach each other."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        pending = [start]
        while pending:
            for other in rooms.get(pending.pop(), set()) - found:
                found.add(other)
                pending.append(other)
        return found

    all_reached = {room: reached(room) for room in rooms}
    return sorted(
        (one, two) for one in rooms for two in all_reached[one] if one < two and one in all_reached[two]
    )


def count_floors(rooms: Graph) -> dict[str, int]:
    """Returns the floor of every room, from 1; the rooms must not form circles."""
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            floors[room] = 1 + max((floor(other) for other in rooms.get(room, ())), default=0)
        return floors[room]

    for room in rooms:
        floor(room)
    return floors


def count_lines(path: Path) -> tuple[int, int, int]:
    """Returns all lines of a file, its code lines and its lines with a comment."""
    text = path.read_text()
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                docs |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    skipped = (
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.COMMENT,
    )
    code, comments = set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in skipped:
            code |= set(lines) - docs
    return len(text.splitlines()), len(code), len(comments)


def function_lengths(path: Path) -> Iterator[int]:
    """Yields the lines of every function, signature and docstring included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def trace_batch() -> list[str]:
    """Returns the files of the product whose functions run for the loss of one batch of pre-training."""
    layout = TokenLayout(
        index_version=1, num_blocks=city.NUM_BLOCKS + 1, max_inner=city.POIS_PER_BLOCK + 2, num_categories=5
    )
    shape = DecoderConfig(
        hidden_dim=16, ffn_dim=32, num_layers=1, num_heads=2, num_kv_heads=2, embedding_dim=8
    )
    model = SpacetimeDecoder(shape.with_layout(layout, num_pois=city.NUM_BLOCKS * city.POIS_PER_BLOCK))
    catalogue = Catalogue.from_arrow(city.to_arrow("poi_index", city.poi_rows()))
    stage = PretrainStage.__new__(PretrainStage)  # its batches come from a table; the loss needs none
    stage.finder = None
    stage.slots = catalogue.live_slots(
        city.FIRST_MS, num_blocks=layout.num_blocks, max_inner=layout.max_inner
    )
    rows = city.to_arrow("pretrain_samples", city.pretrain_rows())
    with trace_files() as files:
        stage.loss(model, rows)
    return sorted(files)


@contextmanager
def trace_files() -> Iterator[set[str]]:
    """Collects the files of the product whose functions are called, in this thread, while it lasts."""
    files: set[str] = set()

    def see(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if (
            event == "call"
            and path.is_relative_to(Path.cwd())
            and path.relative_to(Path.cwd()).parts[0] in PRODUCT
        ):
            files.add(str(path.relative_to(Path.cwd())))

    sys.setprofile(see)
    try:
        yield files
    finally:
        sys.setprofile(None)


def trace_action(folder: Path) -> list[str]:
    """Returns the files of the product that bring an action from its raw table into a release.

    Those whose functions run on the driver in the jobs that it passes: cleaning, sequences, user vectors, publishing.
    What is common to all jobs does not count: contracts, settings and errors (`conf`), and the job tables (`__main__`).
    """
    layer = small_city.write_settings(folder, num_users=60)
    day = str(small_city.DAYS[0])
    for words in [*small_city.night(0), *small_city.training(), ("udfs", "features", "--day", day)]:
        small_city.run(layer, *words)
    passed: set[str] = set()
    for program, job in JOBS_OF_ACTION:
        if job == "publish":  # the audit looks at actions, but passes none on
            small_city.run(layer, "udfs", "audit", "--day", day)
        with trace_files() as files:
            small_city.run(layer, program, job, "--day", day)
        passed |= files
    small_city.close_spark()
    return sorted(each for each in passed if not each.startswith("conf/") and "__main__" not in each)


def main() -> int:
    """Measures, records, and returns 0 if all bars are reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()

    def keep(name: str, value: float, unit: str, bar: str, notes: str) -> bool:
        print(f"{name} {value}: {notes}")
        return record(name, value, unit, bar, COMMAND, notes, options.results).holds is not False

    held, circles = [], []
    for package, most in LIMITS.items():
        rooms = draw_rooms(package)
        circles += find_circles(rooms)
        floors = count_floors(rooms) if not find_circles(rooms) else {}
        highest = max(floors.values(), default=0)
        order = sorted(floors, key=lambda room: (floors[room], room))
        told = ", ".join(f"{floors[room]} {room.partition('.')[2]}" for room in order)
        held.append(keep(f"import-floors-{package}", highest, "floors", f"<= {most}", told))
    held.append(keep("import-circles", len(circles), "pairs of rooms", "== 0", f"{circles or 'none'}"))
    paths = [path for package in PRODUCT for path in sorted(Path(package).rglob("*.py"))]
    counts = [count_lines(path) for path in paths]
    lines, code, comments = (sum(each[place] for each in counts) for place in range(3))
    lengths = [length for path in paths for length in function_lengths(path)]
    sizes = {
        str(room): len(list(room.glob("*.py"))) - 1
        for package in LIMITS
        for room in Path(package).iterdir()
        if room.is_dir()
    }
    fullest = max(sizes, key=sizes.__getitem__)
    of = f"{len(paths)} files of {', '.join(PRODUCT)}, {code} code lines"
    notes = f"{of}; fullest room {fullest}: {sizes[fullest]} files"
    keep("product-lines", lines, "lines", "", notes)
    keep("product-code-lines", code, "lines", "", "without blanks, comments and docstrings")
    median = statistics.median(lengths)
    held.append(
        keep(
            "function-lines-median",
            median,
            "lines",
            "<= 14",
            f"{len(lengths)} functions, longest {max(lengths)}",
        )
    )
    held.append(
        keep("comment-share", round(comments / code, 4), "", ">= 0.02", f"{comments} lines with a comment")
    )
    passed = trace_batch()
    held.append(keep("files-per-batch", len(passed), "files", "<= 10", ", ".join(passed)))
    with tempfile.TemporaryDirectory() as folder:
        passed = trace_action(Path(folder))
    held.append(keep("files-per-action", len(passed), "files", "<= 20", ", ".join(passed)))
    return 0 if all(held) and max(lengths) <= 60 and max(sizes.values()) <= MOST_FILES else 1


if __name__ == "__main__":
    sys.exit(main())
