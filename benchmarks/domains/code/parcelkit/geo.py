"""Places, distances and delivery zones."""

from __future__ import annotations

import math
from typing import ClassVar


class Fleet:
    """Vehicles by name, with their average speed in km/h and their range in km.

    Speeds were measured door to door, stops included, so they look low. Ranges are those of a
    cold day with a full load. The cargo bike is used in the old town only.
    """

    SPEED_KMH: ClassVar[dict[str, float]] = {"bike": 9.0, "van": 27.0, "truck": 44.0}
    RANGE_KM: ClassVar[dict[str, float]] = {"bike": 38.0, "van": 165.0, "truck": 520.0}
    DEFAULT_VEHICLE: ClassVar[str] = "van"


def distance_km(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Great-circle distance between two points given as latitude and longitude in degrees.

    Uses the haversine formula on a sphere of radius 6371 km, which is off by at most half a
    percent. Roads are longer than that: callers that need driving distance multiply the result by
    1.34, the ratio found on the tours of last year.
    """
    (lat1, lon1), (lat2, lon2) = ((math.radians(lat), math.radians(lon)) for lat, lon in (start, end))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(half))


def bucket_of(key: str, num_buckets: int = 64) -> int:
    """Sorting bucket in the depot for a street key, from 1 to ``num_buckets``.

    The sum of the characters' code points decides, so that streets with similar names lie apart.
    Bucket 0 is the table for manual sorting: an empty key goes there, and so does a key that
    holds a question mark, which the scanner prints for letters it could not read.
    """
    if not key or "?" in key:
        return 0
    return 1 + sum(map(ord, key)) % num_buckets


def zone_of(postcode: str) -> str:
    """Delivery zone of a postcode: "metro", "inland" or "remote".

    Postcodes that begin with 10 or 11 are "metro". Those that begin with 7 or 9 lie in the hills
    or behind the ferries and are "remote". All others are "inland". Spaces in front are ignored,
    and nothing is checked: a text without digits is "inland" as well.
    """
    code = postcode.lstrip()
    if code.startswith(("10", "11")):
        return "metro"
    return "remote" if code.startswith(("7", "9")) else "inland"


def eta_minutes(road_km: float, vehicle: str = Fleet.DEFAULT_VEHICLE, num_stops: int = 0) -> int:
    """Minutes until a vehicle arrives, rounded up, from the length of its route by road.

    Driving time follows from the average speed in ``Fleet.SPEED_KMH``; every stop on the way adds
    3 minutes. A route that is longer than the vehicle's range needs a charging break of 50
    minutes, once. An unknown vehicle raises a ``KeyError``.
    """
    minutes = 60 * road_km / Fleet.SPEED_KMH[vehicle] + 3 * num_stops
    if road_km > Fleet.RANGE_KM[vehicle]:
        minutes += 50
    return math.ceil(minutes)


def can_reach(road_km: float, vehicle: str, battery_percent: int) -> bool:
    """Whether a vehicle gets to the end of a route and back to the depot without charging.

    The range in ``Fleet.RANGE_KM`` is scaled by the state of the battery, and 18 percent of the
    battery are kept as a reserve, so a battery at or below that level reaches nothing. The way
    back is taken to be as long as the way out.
    """
    usable_percent = max(battery_percent - 18, 0)
    return 2 * road_km <= Fleet.RANGE_KM[vehicle] * usable_percent / 100
