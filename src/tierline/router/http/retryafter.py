"""``Retry-After`` (RFC 9110, 10.2.3): how long an endpoint wants to be left in peace, in seconds or until a date."""

import re
import time
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(rb"[0-9]{1,9}")


def retry_after_s(value: bytes) -> float:
    """Return the seconds that a field asks for; 0 where it is absent, past, or cannot be read.

    >>> retry_after_s(b"120")
    120.0
    >>> retry_after_s(b"soon")
    0.0
    """
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value.decode("latin-1")).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
