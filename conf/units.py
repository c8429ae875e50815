"""Units and the size of the earth: the same numbers for columns, arrays and tensors."""

import math

MS_PER_MINUTE = 60_000
MS_PER_HOUR = 3_600_000
MS_PER_DAY = 86_400_000
HOURS_PER_DAY = 24
EARTH_RADIUS_KM = 6371.0088
"""Mean radius (IUGG)."""
KM_PER_DEGREE = 2 * math.pi * EARTH_RADIUS_KM / 360
"""Along a meridian."""
GRID_BORDER_WIDTH = 1e-9
"""Share of a grid cell: a point this near to a border is on it, since most borders are no exact double."""
