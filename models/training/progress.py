"""Progress of long tasks: a bar in a terminal, a periodic log line elsewhere."""

import logging
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOGGER = logging.getLogger(__name__)
LOG_EVERY_S = 15.0


class StepProgress:
    """Shows the step of a training: a bar in a terminal, a log line every `LOG_EVERY_S` elsewhere."""

    def __init__(self, name: str, num_steps: int) -> None:
        self.name, self.num_steps, self.last_line = name, num_steps, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> Callable[[int, float | None], None]:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.num_steps)
        return self.advance

    def advance(self, step: int, best: float | None) -> None:
        best_text = "" if best is None else f"best {best:.4f}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=f"{self.name} {best_text}")
        elif time.monotonic() - self.last_line > LOG_EVERY_S:
            self.last_line = time.monotonic()
            LOGGER.info("%s step %d of %d %s", self.name, step, self.num_steps, best_text)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
