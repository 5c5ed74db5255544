"""Fetching carrier pages and feeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar
from urllib.parse import urlsplit

from .errors import FetchError
from .retry import NamedPolicies, run_with_retries

Transport = Callable[[str, float], tuple[int, bytes]]


class FetchLimits:
    """Hard limits of all network access, agreed with the carriers.

    They are not options: a caller that needs more asks the carrier first. A body that is longer
    than allowed is cut off and treated as a failure, never parsed in part.
    """

    CONNECT_TIMEOUT_S: ClassVar[float] = 4.0
    FEED_TIMEOUT_S: ClassVar[float] = 95.0
    MAX_BODY_BYTES: ClassVar[int] = 262144
    MAX_FEED_ROWS: ClassVar[int] = 7000
    MAX_REDIRECTS: ClassVar[int] = 3


def fetch_page(url: str, transport: Transport, timeout_s: float = 12.5) -> bytes:
    """The body of a carrier's page, fetched once and without retries.

    Only ``https`` URLs are followed. An empty body counts as success, since some carriers answer
    a status query for an unknown parcel with nothing.

    Args:
        url: Absolute address of the page.
        transport: Takes the URL and the time limit, gives status and body.
        timeout_s: Limit for the whole exchange, in seconds.

    Raises:
        PermissionError: The URL's scheme is not ``https``.
        FetchError: The status is not 200, or the body is longer than ``MAX_BODY_BYTES``.
    """
    if urlsplit(url).scheme != "https":
        raise PermissionError(f"refused to fetch {url}")
    status, body = transport(url, timeout_s)
    if status != 200 or len(body) > FetchLimits.MAX_BODY_BYTES:
        raise FetchError(url, status)
    return body


def fetch_feed(url: str, transport: Transport) -> list[str]:
    """Rows of a carrier's nightly event feed, without the header row and without blank rows.

    Feeds are large and slow, so the time limit is ``FetchLimits.FEED_TIMEOUT_S`` rather than
    that of a page. Rows past ``FetchLimits.MAX_FEED_ROWS`` are dropped without an error: the
    carrier repeats them in the next feed. Text is decoded as Latin-1, which all carriers still use.
    """
    status, body = transport(url, FetchLimits.FEED_TIMEOUT_S)
    if status != 200:
        raise FetchError(url, status)
    rows = [row for row in body.decode("latin-1").splitlines()[1:] if row.strip()]
    return rows[: FetchLimits.MAX_FEED_ROWS]


def sync_manifest(url: str, transport: Transport, sleep: Callable[[float], None]) -> int:
    """Fetch a depot's manifest and return how many parcels it lists.

    The manifest is one tracking number a line; lines that begin with ``#`` are remarks. Runs with
    ``NamedPolicies.NIGHTLY``, because depots publish the manifest at no fixed time and a missing
    one usually turns up within minutes. Returns 0 for a manifest of remarks only, and does not
    check the numbers themselves, which is left to the label printer.
    """
    rows = run_with_retries(lambda: fetch_page(url, transport), NamedPolicies.NIGHTLY, sleep)
    return sum(1 for row in rows.decode().splitlines() if row and not row.startswith("#"))


def content_kind(content_type: str) -> str:
    """Which parser a response needs, by its ``Content-Type`` header.

    Parameters after a semicolon and upper case are ignored. ``application/json`` and everything
    ending in ``+json`` is "json"; ``text/csv`` is "table"; ``text/html`` is "page". Whatever else
    a carrier sends, and also a missing header, is "opaque" and stored unread for the support team.
    """
    media_type = content_type.split(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return "json"
    return {"text/csv": "table", "text/html": "page"}.get(media_type, "opaque")


def next_page_url(link_header: str) -> str | None:
    """Address of the next page in a ``Link`` header, None on the last page.

    Carriers separate links by commas and mark the one that is meant with ``rel="next"``. Of two
    such links the first counts. Links without angle brackets are ignored, since one carrier sends
    prose there. The address is returned as it is; relative ones are not resolved.
    """
    for link in link_header.split(","):
        address, _, parameters = link.strip().partition(">")
        if address.startswith("<") and 'rel="next"' in parameters:
            return address[1:]
    return None
