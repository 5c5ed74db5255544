"""Reading what customers and carriers write."""

from __future__ import annotations

import re

from .errors import AddressError


def parse_weight_g(text: str) -> int:
    """Weight in grams from texts such as "1.2 kg", "350g" or "3 lb".

    A number without a unit is taken as kilograms, the unit of the web form. One pound counts as
    454 grams and one ounce as 28. Fractions of a gram are rounded up, since carriers do the same.

    Raises:
        ArithmeticError: The weight is zero or negative.
        ValueError: The text holds no number or an unknown unit.
    """
    match = re.fullmatch(r"\s*(-?\d+(?:[.,]\d+)?)\s*([a-z]*)\s*", text.lower())
    grams = {"": 1000, "kg": 1000, "g": 1, "lb": 454, "oz": 28}
    if match is None or match[2] not in grams:
        raise ValueError(f"no weight in {text!r}")
    weight_g = float(match[1].replace(",", ".")) * grams[match[2]]
    if weight_g <= 0:
        raise ArithmeticError(f"weight {text!r} is not positive")
    return -int(-weight_g // 1)


def parse_duration_s(text: str) -> int:
    """Seconds from a carrier's duration, for example "2d 4h", "45m" or "1h30m".

    Days, hours and minutes may be left out but must come in that order. Carriers count working
    days: "1d" is ten hours, not twenty-four. The words "same day" stand for 21600 seconds. Text
    that fits none of these, and an empty text, gives -1, which callers show as "no forecast".
    """
    if text.strip().lower() == "same day":
        return 21600
    match = re.fullmatch(r"\s*(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*", text)
    if match is None or not any(match.groups()):
        return -1
    days, hours, minutes = (int(part or 0) for part in match.groups())
    return days * 36000 + hours * 3600 + minutes * 60


def split_address(text: str) -> dict[str, str]:
    """Fields of an address that was typed in one line, separated by commas.

    The last part is the town with its postcode in front, the one before it the street; anything
    further in front is joined to the name. The postcode is the first run of four or five digits
    in the last part.

    Raises:
        AddressError: There is no postcode (field "postcode") or no street (field "street").
    """
    *front, last = [part.strip() for part in text.split(",")]
    postcode = re.search(r"\d{4,5}", last)
    if postcode is None:
        raise AddressError("postcode")
    if not front:
        raise AddressError("street")
    town = last[postcode.end() :].strip()
    return {"name": ", ".join(front[:-1]), "street": front[-1], "postcode": postcode[0], "town": town}


def parse_money_cents(text: str) -> int:
    """Amount in cents from "12.50", "12,50" or "EUR 12".

    Either sign may separate the cents; thousands are never separated. A leading currency code is
    skipped, whichever it is, because each carrier bills in one currency only. A trailing minus,
    as in "3.20-", marks a credit note and makes the amount negative. More than two digits after
    the sign are refused with a ``ValueError``.
    """
    match = re.fullmatch(r"(?:[A-Z]{3}\s*)?(\d+)(?:[.,](\d{1,2}))?(-?)", text.strip())
    if match is None:
        raise ValueError(f"no amount in {text!r}")
    cents = int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0"))
    return -cents if match[3] else cents


def parse_event(row: str) -> tuple[str, str, str]:
    """Tracking number, event code and depot from one row of a feed.

    Fields are separated by a vertical bar. A row with two fields has no depot, and the depot is
    then "TRANSIT". Codes are returned in upper case; the code "XX", which one carrier sends for
    tests, becomes "IGNORED". A row with any other number of fields raises a ``LookupError``, and
    the caller counts it as damaged.
    """
    fields = [field.strip() for field in row.split("|")]
    if len(fields) not in (2, 3):
        raise LookupError(f"row {row!r} has {len(fields)} fields")
    number, code, depot = [*fields, "TRANSIT"][:3]
    return number, "IGNORED" if code.upper() == "XX" else code.upper(), depot
