"""What the rivals of `etl_rivals` need to know of the project's settings and constants, as plain numbers."""

import math
from datetime import UTC, date, datetime, timedelta

from conf.settings import Settings
from conf.taxonomy import load_taxonomy
from etl.columns import spacetime
from tests.bench.etl_city import CATEGORIES, DAY

_SETTINGS = Settings()
NUM_ROWS = spacetime.num_rows(_SETTINGS.index.cell_km)
COLUMNS_AT_EQUATOR = 2 * math.pi * spacetime.EARTH_RADIUS_KM / _SETTINGS.index.cell_km
EARTH_DIAMETER_KM = 2 * spacetime.EARTH_RADIUS_KM
HILBERT_DIGIT = spacetime._HILBERT_DIGIT
HILBERT_NEXT = spacetime._HILBERT_NEXT


def bounds() -> dict[str, object]:
    """Returns the bounds of the rules and of the sequences by name."""
    clean, sequences = _SETTINGS.clean, _SETTINGS.sequences
    return {
        "day": DAY,
        "rows": NUM_ROWS,
        "max_text_length": clean.max_text_length,
        "earliest_ms": _epoch_ms(clean.earliest_day),
        "latest_ms": _epoch_ms(DAY + timedelta(days=1)) + clean.max_future_min * 60_000,
        "max_poi_shift_km": clean.max_poi_shift_km,
        "max_actions_per_day": clean.max_actions_per_day,
        "max_actions": sequences.max_actions,
        "travel_km": sequences.travel_km,
        "mixed_share": sequences.mixed_share,
    }


def is_interest_by_leaf() -> dict[str, bool]:
    """Returns the taxonomy's verdict on the city's categories."""
    taxonomy = load_taxonomy()
    return {leaf: taxonomy.resolve(leaf).is_interest for leaf in CATEGORIES}


def _epoch_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
