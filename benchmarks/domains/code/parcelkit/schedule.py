"""Pickups, cut-off times and opening hours. Times of day are minutes since midnight."""

from __future__ import annotations

from datetime import date, timedelta
from typing import ClassVar


class Cutoffs:
    """Latest time at which a parcel is accepted for the van of the same day.

    Given as minutes since midnight: 960 is four in the afternoon. Depots close half an hour
    later, but the belts need that time. On Saturdays all services share one early time.
    """

    EXPRESS: ClassVar[int] = 1065
    STANDARD: ClassVar[int] = 960
    ECONOMY: ClassVar[int] = 825
    SATURDAY: ClassVar[int] = 690


def is_closed(day: date) -> bool:
    """Whether the depots are closed for the whole day.

    They are on Sundays and on the fixed holidays: 1 January, 1 May, 19 August (the founder's
    birthday) and 25 December. Holidays that move with Easter are working days, by agreement with
    the drivers, who get a day in September for them.
    """
    return day.weekday() == 6 or (day.month, day.day) in {(1, 1), (5, 1), (8, 19), (12, 25)}


def makes_todays_van(service: str, minute: int, is_saturday: bool) -> bool:
    """Whether a parcel that is handed in at ``minute`` still leaves on the same day.

    Being exactly on time is good enough. Express parcels have ``Cutoffs.EXPRESS``, standard ones
    ``Cutoffs.STANDARD``, and every other service ``Cutoffs.ECONOMY``; on a Saturday
    ``Cutoffs.SATURDAY`` holds for all of them. Closed days are not looked at here.
    """
    latest = {"express": Cutoffs.EXPRESS, "standard": Cutoffs.STANDARD}.get(service, Cutoffs.ECONOMY)
    return minute <= (Cutoffs.SATURDAY if is_saturday else latest)


def next_open_day(day: date, max_days: int = 10) -> date:
    """The first day after ``day`` on which depots are open.

    Strikes and floods are entered as closed days by hand, so a long row of closed days can happen.

    Raises:
        TimeoutError: No open day was found within ``max_days`` days, and a person must decide.
    """
    for offset in range(1, max_days + 1):
        candidate = day + timedelta(days=offset)
        if not is_closed(candidate):
            return candidate
    raise TimeoutError(f"depots stay closed for {max_days} days after {day}")


def pickup_window(first_minute: int, num_parcels: int) -> tuple[int, int]:
    """Start and end of the time in which the driver comes, in minutes since midnight.

    A window is 40 minutes wide and grows by 2 minutes a parcel, to at most 150 minutes. It never
    starts before 450, when the vans leave the depot; an earlier wish is moved there in silence.
    The end may lie after closing time, since drivers finish their tour.
    """
    start = max(first_minute, 450)
    width = min(40 + 2 * num_parcels, 150)
    return start, start + width


def storage_days(is_perishable: bool, num_attempts: int) -> int:
    """Days for which a parcel that could not be delivered stays at the depot.

    Seven days after the first failed attempt, and four after any later one, because the customer
    has been told before. Perishable goods stay for one day only and are then given to the food
    bank. The day of the attempt itself does not count.
    """
    if is_perishable:
        return 1
    return 7 if num_attempts <= 1 else 4
