"""Every error a user of Tierline can meet, in one tree; a message says what was given, what is allowed, what to do.

TierlineError
├── UsageError                a user's mistake: one line on stderr, exit status 2
│   ├── ConfigurationError    a key, its value, and what is allowed
│   └── EnvironmentTooSmall   memory, /dev/shm, ports: found before anything starts
├── SegmentError              the shared-memory segment cannot be made, adopted or mapped
│   └── SegmentHeld           a call of a tier may write to it still: only the process's end lets it go
├── StoreError                the store refuses one operation; the store itself is well
│   ├── AlreadyStored         write-once: the key holds a committed object
│   ├── BeingWritten          another writer holds the key
│   ├── NoSpace               nothing evictable is left; says how much is leased or resting
│   │   └── QuotaExceeded     the namespace's hard quota; what it has is leased, resting or being written
│   ├── ObjectTooLarge        larger than the segment can ever hold
│   ├── UnknownSlot           committed, aborted, or another connection's
│   ├── UnknownLease          released, expired, or never given
│   └── TooManyLeases         the holder has as many as one may have; release some
├── WireError                 bytes that do not follow the wire contract; the connection is closed
├── AccessDenied              the tokens of a node or a router do not allow it, or it asks for one
├── NodeRefused               the node store answers, and its answer is an error
├── NodeUnavailable           the node store cannot be reached in time; callers recompute
├── ChecksumMismatch          bytes differ from what was committed; callers treat it as a miss
├── RouterRefused             the router answers an operator, and its answer is an error
├── RouterUnavailable         the router cannot be reached by an operator, or does not answer in time
├── ClusterRefused            the Kubernetes API answers, and its answer is an error
├── ClusterUnavailable        the Kubernetes API cannot be reached in time
├── EndpointRefused           an endpoint in a cluster answers a request with an error
├── EndpointUnavailable       an endpoint in a cluster cannot be reached
├── BucketRefused             S3, or what speaks its protocol, does not let us read or write
├── EndpointConflict          the router's endpoints cannot be changed so: known already, or too many
├── SourceError               a model's files cannot be had from where they are kept
├── NotPublished              a certificate cannot be written where clients look for it
└── EngineError               an engine cannot be started or joined
"""

import re
from http import HTTPStatus

_PASSWORD = re.compile(r"(://[^\s/@:]*:)[^\s/@]+@")
"""Of a URL in a value that is shown to whoever made the mistake, and to the log that it goes to."""


class TierlineError(Exception):
    """Root of the tree. The first argument is the whole message."""


class UsageError(TierlineError):
    """A user's mistake. The command line prints it on one line and exits with status 2."""


class ConfigurationError(UsageError):
    """A configuration key has a value that is not allowed.

    Parameters
    ----------
    key
        The key as the user wrote it: a flag, an environment variable or a path in a file.
    value
        What was given; passwords of URLs in it are not shown.
    allowed
        What is allowed, in words.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        shown = _PASSWORD.sub(r"\1…@", repr(value))
        super().__init__(f"{key}: got {shown}; allowed: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed


class EnvironmentTooSmall(UsageError):  # noqa: N818  (the name states the condition)
    """The machine lacks something that was asked for: memory, room in /dev/shm, a free port."""


class SegmentError(TierlineError):
    """The shared-memory segment cannot be created, adopted or mapped."""


class SegmentHeld(SegmentError):  # noqa: N818
    """A call of a tier that does not end may still write to the segment: only the end of the process lets it go."""


class StoreError(TierlineError):
    """The store refuses one operation; nothing else is affected."""


class AlreadyStored(StoreError):  # noqa: N818
    """The key holds a committed object; objects are written once."""


class BeingWritten(StoreError):  # noqa: N818
    """Another writer holds the key and has not committed yet."""


class NoSpace(StoreError):  # noqa: N818
    """No pages can be had: what is stored is leased or resting after a lease."""


class QuotaExceeded(NoSpace):
    """A namespace would pass its hard quota, and of its own objects too few can go now."""


class ObjectTooLarge(StoreError):  # noqa: N818
    """The object is larger than the segment can ever hold."""


class UnknownSlot(StoreError):  # noqa: N818
    """The slot was committed or aborted before, or belongs to another owner."""


class UnknownLease(StoreError):  # noqa: N818
    """The lease was released, has expired, or was never given."""


class TooManyLeases(StoreError):  # noqa: N818
    """A holder, or all together, have as many live leases as they may have."""


class WireError(TierlineError):
    """Bytes from a peer do not follow the wire contract; the connection that sent them is closed."""


class AccessDenied(TierlineError):  # noqa: N818
    """A node or a router asks for a token, does not know the one it was shown, or its rights do not suffice."""


class NodeRefused(TierlineError):  # noqa: N818
    """The node store answered a request with an error.

    Parameters
    ----------
    message
        Who answered what to which request.
    status
        Status of the HTTP answer.
    reason
        Why an object is not stored, in a word; empty for other refusals.
    """

    def __init__(self, message: str, status: int, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class NodeUnavailable(TierlineError):  # noqa: N818
    """The node store cannot be reached, or did not answer in time. Callers recompute."""


class ChecksumMismatch(TierlineError):  # noqa: N818
    """Bytes differ from what their writer committed. Callers treat the object as a miss."""


class RouterRefused(TierlineError):  # noqa: N818
    """The router answered an operator's request with an error."""


class RouterUnavailable(TierlineError):  # noqa: N818
    """The router cannot be reached by its operator, or did not answer in time."""


class ClusterRefused(TierlineError):  # noqa: N818
    """The Kubernetes API answered a request with an error.

    Parameters
    ----------
    message
        What it said.
    status
        Status of the HTTP answer.
    reason
        Kubernetes' word for it, such as ``Conflict``; empty where there is none.
    retry_after_s
        Seconds that it asks to be left alone for.
    """

    def __init__(self, message: str, status: int, reason: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """The same request may well be answered later: there were too many, or something behind the API was away."""
        return self.status in (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS) or (
            self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )


class ClusterUnavailable(TierlineError):  # noqa: N818
    """The Kubernetes API cannot be reached, or did not answer in time."""


class EndpointRefused(TierlineError):  # noqa: N818
    """An endpoint in a cluster answered a request with an error.

    Parameters
    ----------
    message
        Who answered what.
    status
        Status of the HTTP answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EndpointUnavailable(TierlineError):  # noqa: N818
    """An endpoint in a cluster cannot be reached, or falls silent."""


class BucketRefused(TierlineError):  # noqa: N818
    """S3, or what speaks its protocol, does not let us do what was asked, or cannot be reached."""


class EndpointConflict(TierlineError):  # noqa: N818
    """The set of a router's endpoints cannot be changed as was asked."""


class SourceError(TierlineError):
    """A model's files cannot be had from where they are kept, and asking again as it is does not mend it."""


class NotPublished(TierlineError):  # noqa: N818
    """A certificate cannot be written where clients look for it."""


class EngineError(TierlineError):
    """An inference engine cannot be started or joined."""
