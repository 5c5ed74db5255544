"""Every error that parcelkit raises on purpose."""

from __future__ import annotations

from typing import ClassVar


class ParcelError(Exception):
    """Root of all errors of this library.

    The command line catches this class alone, prints the message on stderr and leaves with
    ``exit_code``; anything else is a defect and keeps its traceback. Sub-classes override the
    exit code and may override ``report_to``, the mailbox that gets the daily digest of errors.
    """

    exit_code: ClassVar[int] = 2
    report_to: ClassVar[str] = "support"


class FetchError(ParcelError):
    """A carrier's server could not be reached, or answered with something unusable.

    Carries the URL and the HTTP status; the status is 0 where no answer came at all, for
    example after a refused connection. Raised by the fetching and retrying functions only;
    the digest of these errors is read by the network team.
    """

    exit_code: ClassVar[int] = 41
    report_to: ClassVar[str] = "network"

    def __init__(self, url: str, status: int = 0) -> None:
        super().__init__(f"{url} answered {status}")
        self.url = url
        self.status = status


class AddressError(ParcelError):
    """A postal address is incomplete or contradicts itself.

    The field that is wrong stands in ``field``, so that a form can point at it. Addresses are
    personal data: the message names the field and never repeats what the customer typed. The
    digest goes to the people who correct addresses by hand.
    """

    exit_code: ClassVar[int] = 52
    report_to: ClassVar[str] = "customer-care"

    def __init__(self, field: str) -> None:
        super().__init__(f"the address has no usable {field}")
        self.field = field


class TariffError(ParcelError):
    """No price can be named for a parcel.

    Either the parcel is outside every tariff (too heavy, too long, a zone that is not served)
    or the tariff table itself is broken. The two are told apart by ``is_table_broken``: a broken
    table stops the whole quote run, an unpriceable parcel only skips that parcel.
    """

    exit_code: ClassVar[int] = 63
    report_to: ClassVar[str] = "billing"

    def __init__(self, reason: str, is_table_broken: bool = False) -> None:
        super().__init__(reason)
        self.is_table_broken = is_table_broken


class QueueFullError(ParcelError):
    """A bounded queue refused a job because it holds as many as it may.

    Producers are expected to slow down rather than to retry at once: the error carries
    ``retry_after_s``, the time after which a place is likely to be free. Nobody gets a digest of
    these errors by mail; they are counted on the operations dashboard.
    """

    exit_code: ClassVar[int] = 75
    report_to: ClassVar[str] = "dashboard"

    def __init__(self, name: str, retry_after_s: float = 8.0) -> None:
        super().__init__(f"queue {name} is full")
        self.retry_after_s = retry_after_s


class LabelError(ParcelError):
    """A shipping label cannot be printed as asked.

    Raised before anything is sent to the printer, so a failed label never leaves half a sticker
    in the tray. The usual reason is a tracking number whose check digit is wrong; the second is
    a text field with characters outside the printer's code page.
    """

    exit_code: ClassVar[int] = 86
    report_to: ClassVar[str] = "warehouse"
