"""One function a verb: builds the request and knows the reply that belongs to it. Both clients speak through these.

A call is a value: nothing here sends, waits or remembers. Those that a request is behind say which, as far as whoever
makes them does (:func:`tierline.tracing.context.working_for`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from tierline import errors
from tierline.loading import PrefillCost
from tierline.tracing.context import current
from tierline.wire import messages
from tierline.wire.messages import CommitEntry, Leased, Refusal, Slot

T = TypeVar("T")

_UNKNOWN_COST = PrefillCost(0.0)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request without its id, and how to read its reply.

    Parameters
    ----------
    request
        Makes the request for an id.
    read
        Returns the result from a reply, or None where the reply is of another kind.
    """

    request: Callable[[int], messages.Request]
    read: Callable[[messages.Reply], T | None]

    def result(self, reply: messages.Reply) -> T:
        """Return what the reply says.

        Raises
        ------
        StoreError, WireError, AccessDenied
            The node refused; of the class that it named.
        WireError
            The reply is of a kind that does not answer this request.
        """
        if isinstance(reply, messages.Failed):
            raise _REFUSALS.get(reply.code, errors.WireError)(reply.message)
        result = self.read(reply)
        if result is None:
            raise errors.WireError(f"the node answered with {type(reply).__name__}")
        return result


def prefix_lease(
    bucket: str,
    names: Sequence[str],
    ttl_s: float,
    group_size: int,
    across_gaps: bool = False,
    wait_s: float = 0.0,
    anchor: str = "",
    prefill: PrefillCost | None = None,
) -> Call[Leased]:
    """Lease the longest leading run, or all that is there."""
    first_s, growth_s = prefill or _UNKNOWN_COST
    origin = current()
    return Call(
        lambda number: messages.PrefixLease(
            number,
            bucket,
            list(names),
            ttl_s,
            group_size,
            across_gaps,
            wait_s,
            anchor,
            first_s,
            growth_s,
            origin.request_id,
            origin.traceparent,
        ),
        lambda reply: reply if isinstance(reply, Leased) else None,
    )


def renew(lease: str, ttl_s: float) -> Call[int]:
    """Set a lease's remaining time."""
    return Call(lambda number: messages.Renew(number, lease, ttl_s), _count)


def release(lease: str, start: int, stop: int | None) -> Call[int]:
    """Give back a lease or a part of it."""
    return Call(lambda number: messages.Release(number, lease, start, stop), _count)


def reserve(bucket: str, names: Sequence[str], sizes: Sequence[int], wait_s: float = 0.0) -> Call[list[Slot | Refusal]]:
    """Allocate slots and hold their names."""
    return Call(
        lambda number: messages.Reserve(number, bucket, list(names), list(sizes), wait_s),
        lambda reply: reply.outcomes if isinstance(reply, messages.Reserved) else None,
    )


def grant(size: int, count: int) -> Call[list[Slot]]:
    """Allocate slots ahead of need."""
    return Call(
        lambda number: messages.Grant(number, size, count),
        lambda reply: reply.slots if isinstance(reply, messages.Granted) else None,
    )


def commit(bucket: str, entries: Sequence[CommitEntry]) -> Call[list[Refusal | None]]:
    """Publish written slots."""
    origin = current()
    return Call(
        lambda number: messages.Commit(number, bucket, list(entries), origin.request_id, origin.traceparent),
        lambda reply: reply.outcomes if isinstance(reply, messages.Committed) else None,
    )


def abort(slots: Sequence[int]) -> Call[int]:
    """Give slots back."""
    return Call(lambda number: messages.Abort(number, list(slots)), _count)


def suspect(bucket: str, name: str) -> Call[int]:
    """Report bytes that do not match their checksum."""
    return Call(lambda number: messages.Suspect(number, bucket, name), _count)


def delete(bucket: str, names: Sequence[str]) -> Call[int]:
    """Remove objects."""
    return Call(lambda number: messages.Delete(number, bucket, list(names)), _count)


def describe() -> Call[dict[str, Any]]:
    """Ask for statistics."""
    return Call(
        messages.Describe,
        lambda reply: (
            msgspec.json.decode(reply.stats, type=dict[str, Any]) if isinstance(reply, messages.Description) else None
        ),
    )


def introduce(said: messages.Introduce) -> Call[int]:
    """Say which objects this client reads; the id is filled in."""
    return Call(lambda number: msgspec.structs.replace(said, id=number), _count)


def undo(reply: messages.Reply) -> Call[int] | None:
    """Return the call that gives back what a reply handed to a caller who had gone, or None if it handed nothing."""
    match reply:
        case Leased(lease=lease) if lease:
            return release(lease, 0, None)
        case messages.Reserved(outcomes=outcomes):
            slots = [outcome.slot for outcome in outcomes if isinstance(outcome, Slot)]
            return abort(slots) if slots else None
        case messages.Granted(slots=granted) if granted:
            return abort([slot.slot for slot in granted])
        case _:
            return None


def _count(reply: messages.Reply) -> int | None:
    return reply.count if isinstance(reply, messages.Done) else None


_REFUSALS: dict[str, type[errors.TierlineError]] = {
    error.__name__: error
    for error in (
        errors.StoreError,
        errors.AlreadyStored,
        errors.BeingWritten,
        errors.NoSpace,
        errors.ObjectTooLarge,
        errors.UnknownSlot,
        errors.UnknownLease,
        errors.TooManyLeases,
        errors.WireError,
        errors.AccessDenied,
    )
}
