"""Amounts as people write them: ``10GB``, ``512MiB``, ``30d``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from samkv_rag.exceptions import ConfigurationError

_BYTES = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_AMOUNT = 2**63 - 1
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """``"10GB"`` to 10,000,000,000, ``"1GiB"`` to 1,073,741,824, ``"100"`` to 100.

    Raises:
        ConfigurationError: not a number of bytes.
    """
    amount = _scaled(text, _BYTES, str.upper)
    if amount is None:
        raise ConfigurationError(f"{text!r} is not a number of bytes; give one such as 10GB, 512MiB or 1000000")
    return int(amount)


def parse_seconds(text: str) -> float:
    """``"30d"`` to 2,592,000; units are s, m (minutes), h, d and w.

    Raises:
        ConfigurationError: not a length of time.
    """
    amount = _scaled(text, _SECONDS, str)
    if amount is None:
        raise ConfigurationError(f"{text!r} is not a length of time; give one such as 30d, 12h or 45m")
    return float(amount)


def format_bytes(num_bytes: int) -> str:
    """``40.1 GB``; powers of 1000."""
    amount, unit = float(num_bytes), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{num_bytes:,} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def _scaled(text: str, units: Mapping[str, int], spelled: Callable[[str], str]) -> Fraction | None:
    """The exact amount; None where the text is none, or one past all bounds."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or spelled(found[2]) not in units or len(text) > 100:
        return None
    amount = Fraction(found[1]) * units[spelled(found[2])]
    return amount if amount <= _MAX_AMOUNT else None
