"""Raw time and place -> small integers and waves for embeddings. Pure torch, no parameters.

Times are epoch milliseconds UTC, with the minutes to add for local time. Places are (longitude, latitude) in degrees,
NaN = unknown.
"""

# Shape: every function works elementwise on tensors of any shape `...`; places have a last axis of 2.

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from conf.units import EARTH_RADIUS_KM, HOURS_PER_DAY, KM_PER_DEGREE, MS_PER_DAY, MS_PER_MINUTE

DAYS_PER_WEEK, HOURS_PER_WEEK, MONTHS = 7, 168, 12
NUM_GAP_BUCKETS = 32
"""Buckets of the gap to the previous action; 0 = there is none."""


class Clock(NamedTuple):
    """Parts of local time; all int64, (...), from 0; weekdays start on Monday."""

    hour: Tensor
    weekday: Tensor
    hour_of_week: Tensor
    month: Tensor
    is_holiday: Tensor
    minute_of_day: Tensor


def split_time(timestamps_ms: Tensor, tz_offsets_min: Tensor, holidays: Sequence[str] = ()) -> Clock:
    """Splits UTC time into local clock and calendar; `holidays` are fixed dates, MM-DD."""
    local_ms = timestamps_ms + tz_offsets_min * MS_PER_MINUTE
    days = local_ms.div(MS_PER_DAY, rounding_mode="floor")
    minute = (local_ms - days * MS_PER_DAY) // MS_PER_MINUTE
    hour = minute // 60
    weekday = (days + 3) % DAYS_PER_WEEK  # day 0, 1970-01-01, was a Thursday
    month, day = _split_days(days)
    is_holiday = torch.zeros_like(month)
    for holiday in holidays:
        holiday_month, holiday_day = (int(part) for part in holiday.split("-"))
        is_holiday = is_holiday | ((month == holiday_month) & (day == holiday_day)).long()
    return Clock(hour, weekday, weekday * HOURS_PER_DAY + hour, month - 1, is_holiday, minute)


def _split_days(days: Tensor) -> tuple[Tensor, Tensor]:
    """Returns month (1-12) and day of month of days since 1970-01-01 (Hinnant's civil_from_days)."""
    # Days since 0000-03-01: in years that begin in March the leap day is the last.
    shifted = days + 719_468
    era = shifted.div(146_097, rounding_mode="floor")
    day_of_era = shifted - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    return torch.where(month_from_march < 10, month_from_march + 3, month_from_march - 9), day


def bucket_gap(gap_ms: Tensor, has_previous: Tensor) -> Tensor:
    """Returns the log bucket of the time since the previous action, two per doubling; 0 = no previous."""
    minutes = gap_ms.clamp(min=0).float() / MS_PER_MINUTE
    bucket = (1 + 2 * torch.log2(minutes + 1)).long().clamp(max=NUM_GAP_BUCKETS - 1)
    return torch.where(has_previous, bucket, 0)


def is_known_place(lonlat: Tensor) -> Tensor:
    """Returns which places are known, (..., 2) -> (...) bool."""
    return ~lonlat.isnan().any(dim=-1)


def hash_geo_cells(lonlat: Tensor, scales_km: Sequence[float], num_buckets: int) -> Tensor:
    """Returns the hash bucket of each place's geo cell, per scale: (..., 2) -> (..., scales), int64.

    Rows are bands of latitude; at its middle, a row's cells are as wide as high. Bucket 0 = unknown place. Scale s
    has the numbers s * num_buckets to (s + 1) * num_buckets - 1.
    """
    known = is_known_place(lonlat)
    place = torch.nan_to_num(lonlat.double())
    buckets = []
    for scale, side_km in enumerate(scales_km):
        row = ((place[..., 1] + 90) * (KM_PER_DEGREE / side_km)).floor()
        middle = ((row + 0.5) * (side_km / KM_PER_DEGREE) - 90).clamp(-90, 90)
        circumference = 360 * KM_PER_DEGREE * torch.cos(torch.deg2rad(middle))
        num_columns = (circumference / side_km).round().clamp(min=1)
        # The modulo gives longitude 180 the column of -180, instead of one too many.
        column = ((place[..., 0] + 180) / 360 * num_columns).floor() % num_columns
        hashed = _mix(row.long() * 1_000_003 + column.long() + scale * 7_919)
        bucket = 1 + hashed % (num_buckets - 1)
        buckets.append(torch.where(known, bucket, 0) + scale * num_buckets)
    return torch.stack(buckets, dim=-1)


def hash_slots(block_ids: Tensor, inner_ids: Tensor, num_rows: int) -> Tensor:
    """Returns a row from 1 to num_rows - 1 for each (block, inner), (...); equal pairs get equal rows."""
    return 1 + _mix(block_ids * 1_000_003 + inner_ids) % (num_rows - 1)


def _mix(keys: Tensor) -> Tensor:
    """Spreads integers over 0 to 2^31 - 1: two rounds of a multiplicative hash that int64 can hold."""
    low_bits = 2**31 - 1
    mixed = ((keys ^ (keys >> 31)) & low_bits) * 73_244_475 % low_bits
    mixed = ((mixed ^ (mixed >> 15)) & low_bits) * 1_376_312_589 % low_bits
    return mixed ^ (mixed >> 13)


def place_on_sphere(lonlat: Tensor) -> Tensor:
    """Returns unit vectors (..., 3), float64; unknown places become (0, 0, 0)."""
    angles = torch.deg2rad(torch.nan_to_num(lonlat.double()))
    lon, lat = angles[..., 0], angles[..., 1]
    xyz = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)
    return xyz * is_known_place(lonlat)[..., None]


def encode_fourier(lonlat: Tensor, waves_km: Sequence[float]) -> Tensor:
    """Returns continuous coordinates, sines and cosines on the sphere: (..., 2) -> (..., 6 * waves).

    Unknown places become zeros. The coordinates are smooth across the poles and 180 degrees, like the sphere.
    """
    xyz = place_on_sphere(lonlat)
    turns = torch.tensor(
        [2 * math.pi * EARTH_RADIUS_KM / wave for wave in waves_km], dtype=torch.float64, device=lonlat.device
    )
    # Short waves give angles of thousands of radians, whose phase would lose digits in float32.
    angles = (xyz[..., None, :] * turns[:, None]).flatten(-2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).float()
    return waves * is_known_place(lonlat)[..., None]


def num_fourier_features(waves_km: Sequence[float]) -> int:
    """Returns the length of `encode_fourier`'s last axis."""
    return 6 * len(waves_km)
