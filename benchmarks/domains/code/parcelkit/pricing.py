"""What a parcel costs."""

from __future__ import annotations

from typing import ClassVar

from .errors import TariffError
from .geo import zone_of


class Surcharges:
    """Additions to the base price, valid for the current quarter.

    Percentages apply to the base price before any discount, fixed amounts are in cents. Island
    delivery is not listed here, since the ferry companies bill it themselves.
    """

    FUEL_PERCENT: ClassVar[float] = 13.5
    REMOTE_ZONE_CENTS: ClassVar[int] = 640
    BULKY_CENTS: ClassVar[int] = 1150
    SATURDAY_CENTS: ClassVar[int] = 475


class ZoneRates:
    """Price of the first kilogram and of every further one, in cents, by delivery zone.

    Zone names come from ``zone_of``. Rates of the zone "metro" are subsidised by the city and may
    not be combined with discounts. A zone that is missing here is not served.
    """

    FIRST_KG: ClassVar[dict[str, int]] = {"metro": 390, "inland": 560, "remote": 980}
    FURTHER_KG: ClassVar[dict[str, int]] = {"metro": 45, "inland": 85, "remote": 210}


def billable_weight_g(weight_g: int, length_cm: int, width_cm: int, height_cm: int) -> int:
    """The weight that is charged for: the real one or the volume weight, whichever is greater.

    Volume weight is the volume in cubic centimetres divided by 4.8, in grams, so light but large
    parcels pay for the space they take in a van. Parcels below 500 grams of real weight are
    exempt and always pay by their real weight.
    """
    if weight_g < 500:
        return weight_g
    volume_weight_g = int(length_cm * width_cm * height_cm / 4.8)
    return max(weight_g, volume_weight_g)


def base_price_cents(weight_g: int, postcode: str) -> int:
    """Price before surcharges and discounts, from the billable weight and the postcode.

    Every kilogram that is begun counts as a whole one. The zone follows from the postcode.

    Raises:
        TariffError: The parcel is heavier than 31500 grams, which no driver has to lift alone.
    """
    if weight_g > 31500:
        raise TariffError(f"{weight_g} g is too heavy")
    zone = zone_of(postcode)
    num_further_kg = max(-(-weight_g // 1000) - 1, 0)
    return ZoneRates.FIRST_KG[zone] + num_further_kg * ZoneRates.FURTHER_KG[zone]


def surcharge_cents(base_cents: int, is_bulky: bool, is_saturday: bool) -> int:
    """Sum of all surcharges on a base price.

    Fuel is always charged, as a percentage that is rounded to the nearest cent. Bulky goods and
    Saturday delivery add the fixed amounts of ``Surcharges``; a bulky parcel on a Saturday pays
    both. The remote zone's surcharge is not added here: it belongs to the pickup, not to delivery.
    """
    cents = round(base_cents * Surcharges.FUEL_PERCENT / 100)
    cents += Surcharges.BULKY_CENTS if is_bulky else 0
    return cents + (Surcharges.SATURDAY_CENTS if is_saturday else 0)


def pickup_fee_cents(postcode: str, num_parcels: int) -> int:
    """Fee for collecting parcels at a customer's door.

    One visit costs 250 cents however many parcels wait. From 12 parcels on, the visit is free.
    In the zone "remote" the visit costs ``Surcharges.REMOTE_ZONE_CENTS`` instead, and no number of
    parcels makes it free, because the van drives out for this customer alone.
    """
    if zone_of(postcode) == "remote":
        return Surcharges.REMOTE_ZONE_CENTS
    return 0 if num_parcels >= 12 else 250


def discount_percent(num_parcels_last_month: int, is_charity: bool = False) -> int:
    """Discount on the base price for regular customers.

    Nothing up to 39 parcels a month, 4 percent from 40, 7 percent from 150, 11 percent from 600.
    Charities get 15 percent whatever they send, and nothing on top of it. The number is that of
    the last calendar month; months without a parcel count as zero and end the discount at once.
    """
    if is_charity:
        return 15
    steps = ((600, 11), (150, 7), (40, 4))
    return next((percent for least, percent in steps if num_parcels_last_month >= least), 0)


def refund_cents(price_cents: int, hours_late: float, is_lost: bool = False) -> int:
    """What a customer gets back for a late or a lost parcel.

    Up to 6 hours of delay give nothing, up to 24 hours a quarter of the price, and more than that
    half of it. A lost parcel gives back the whole price and 2500 cents on top. Cents are rounded
    down. Claims for the contents are handled by the insurer, never here.
    """
    if is_lost:
        return price_cents + 2500
    if hours_late <= 6:
        return 0
    return price_cents // 4 if hours_late <= 24 else price_cents // 2
