"""Where check-in data lies, for tests that need some.

`SPACETIME_DATA` names the folder of folders; without it, `shared/data` beside the checkout is taken if it is there.
"""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2] / "shared" / "data"


def find_checkin_data() -> Path | None:
    """Returns the folder of folders of check-ins, if one is at hand."""
    named = os.environ.get("SPACETIME_DATA")
    folder = Path(named) if named else BESIDE
    return folder if folder.is_dir() else None


DATA = find_checkin_data()
needs_data = pytest.mark.skipif(DATA is None, reason="no check-ins: SPACETIME_DATA names no folder of them")
