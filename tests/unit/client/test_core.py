"""The client's state between its socket and its callers: nothing that a reply hands out is lost."""

import pytest

from tierline.client import calls
from tierline.client.core import MAX_UNSENT_BYTES, ClientCore
from tierline.errors import NodeUnavailable, NoSpace, UnknownLease, WireError
from tierline.wire import messages
from tierline.wire.framing import FrameDecoder, encode_frame


def take_requests(core: ClientCore) -> list[messages.Request]:
    decoder: FrameDecoder[messages.Request] = FrameDecoder(messages.Request)  # type: ignore[arg-type]
    requests = list(decoder.feed(core.unsent))
    core.unsent.clear()
    return requests


def deliver(core: ClientCore, *replies: messages.Message) -> list[tuple[int, messages.Reply]]:
    return list(core.receive(b"".join(encode_frame(reply) for reply in replies)))


def test_replies_find_their_requests_in_any_order() -> None:
    core = ClientCore()
    first, second = core.request(calls.release("a", 0, None)), core.request(calls.release("b", 0, None))
    found = deliver(core, messages.Done(second, 2), messages.Done(first, 1))
    assert found == [(second, messages.Done(second, 2)), (first, messages.Done(first, 1))]


@pytest.mark.parametrize(
    ("call", "reply", "gives_back"),
    [
        (
            calls.prefix_lease("b", ["n"], 1.0, 1),
            messages.Leased(1, "lease", [messages.LeasedObject(1, 0, [messages.Extent(0, 1)])], 1.0),
            messages.Release(2, "lease"),
        ),
        (
            calls.reserve("b", ["n", "m"], [1, 1]),
            messages.Reserved(1, [messages.Slot(7, 1, [messages.Extent(0, 1)]), messages.Refusal.EXISTS]),
            messages.Abort(2, [7]),
        ),
        (
            calls.grant(1, 2),
            messages.Granted(1, [messages.Slot(8, 1, []), messages.Slot(9, 1, [])]),
            messages.Abort(2, [8, 9]),
        ),
    ],
)
def test_what_comes_after_its_caller_has_gone_is_given_back(
    call: calls.Call[object], reply: messages.Message, gives_back: messages.Request
) -> None:
    core = ClientCore()
    core.abandon(core.request(call))
    take_requests(core)
    assert deliver(core, reply) == []
    assert take_requests(core) == [gives_back]
    assert deliver(core, messages.Done(2)) == []
    assert take_requests(core) == []


def test_a_late_reply_that_hands_out_nothing_is_forgotten() -> None:
    core = ClientCore()
    core.abandon(core.request(calls.prefix_lease("b", ["n"], 1.0, 1)))
    take_requests(core)
    deliver(core, messages.Leased(1, "", [], 1.0))
    assert take_requests(core) == []


def test_a_reply_that_nobody_asked_for_ends_the_trust() -> None:
    with pytest.raises(WireError, match="not asked"):
        deliver(ClientCore(), messages.Done(5))


def test_a_complaint_about_the_connection_is_passed_on() -> None:
    with pytest.raises(WireError, match="too long"):
        deliver(ClientCore(), messages.Failed(0, "WireError", "a frame too long"))


def test_refusals_come_back_as_the_errors_they_name() -> None:
    call = calls.renew("lease", 1.0)
    for code, error in (("UnknownLease", UnknownLease), ("NoSpace", NoSpace), ("SomethingNew", WireError)):
        with pytest.raises(error, match="because"):
            call.result(messages.Failed(1, code, "because"))


def test_a_reply_of_another_kind_is_refused() -> None:
    with pytest.raises(WireError, match="Granted"):
        calls.renew("lease", 1.0).result(messages.Granted(1, []))


def test_requests_do_not_pile_up_before_a_node_that_does_not_read() -> None:
    core = ClientCore()
    names = ["x" * 1000] * 4000
    while len(core.unsent) <= MAX_UNSENT_BYTES:
        core.request(calls.delete("b", names))
    with pytest.raises(NodeUnavailable, match="does not read"):
        core.request(calls.delete("b", names))


def test_what_nobody_waits_for_needs_no_caller_and_its_refusal_is_counted() -> None:
    core = ClientCore()
    core.send_unheard(calls.release("a", 0, None))
    core.send_unheard(calls.release("b", 0, None))
    awaited = core.request(calls.release("c", 0, None))
    first, second, _ = take_requests(core)
    assert core.unheard == 2
    replies = messages.Done(first.id, 1), messages.Failed(second.id, "AccessDenied", "no"), messages.Done(awaited, 1)
    assert deliver(core, *replies) == [(awaited, messages.Done(awaited, 1))]
    assert (core.unheard, core.refused_unheard) == (0, 1)
