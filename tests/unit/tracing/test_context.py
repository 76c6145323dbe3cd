"""Whose work something is: read from messages, kept along tasks, and told on."""

import asyncio

import pytest

from tierline import logs
from tierline.tracing.context import (
    NOWHERE,
    SAMPLED,
    Origin,
    TraceContext,
    current,
    read_context,
    read_id,
    working_for,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_traceparent_is_read_as_it_is_written() -> None:
    field = f"00-{TRACE}-{SPAN}-01".encode()
    context = read_context(field)
    assert context == (int(TRACE, 16), int(SPAN, 16), SAMPLED)
    assert context.field() == field


@pytest.mark.parametrize(
    "field",
    [
        None,
        b"",
        b"00-xyz",
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-x".encode(),
        f"00-{TRACE}_{SPAN}-01".encode(),
    ],
)
def test_what_is_no_traceparent_counts_as_none(field: bytes | None) -> None:
    assert read_context(field) is None


def test_a_request_without_an_id_gets_one_that_says_its_place() -> None:
    context = TraceContext(int(TRACE, 16), int(SPAN, 16), SAMPLED)
    assert read_id(context.request_id()) == (context.request_id(), context)
    for other in ("", "an id", TRACE, f"{TRACE}-{SPAN[1:]}", f"{'0' * 32}-{SPAN}", f"{TRACE}-{SPAN}-0", f"~{TRACE}"):
        assert read_id(other) == (other, None)


@pytest.mark.parametrize("chosen", ["an id", "a~b", "a\nb", "i" * 1000, f"{TRACE}-{SPAN}"])
def test_a_place_stands_behind_the_id_that_a_client_chose(chosen: str) -> None:
    context = TraceContext(int(TRACE, 16), int(SPAN, 16), SAMPLED)
    assert read_id(context.request_id(chosen)) == (chosen, context)
    assert Origin.read(context.request_id(chosen), "") == Origin(chosen[:256])


def test_of_an_origin_others_are_told_what_there_is_of_it() -> None:
    assert Origin.read("", "") is NOWHERE
    assert NOWHERE.headers() == {}
    origin = Origin.read("i" * 1000, f"00-{TRACE}-{SPAN}-01")
    assert origin.headers() == {"x-request-id": "i" * 256, "traceparent": f"00-{TRACE}-{SPAN}-01"}
    assert Origin.read("id", "no traceparent \u20ac") == Origin("id")


async def test_work_is_somebody_s_in_its_block_and_in_tasks_begun_there() -> None:
    origin = Origin("an id")

    async def says() -> tuple[Origin, str]:
        return current(), logs.request_id.get()

    with working_for(origin):
        task = asyncio.create_task(says())
        assert await says() == (origin, "an id")
    assert await task == (origin, "an id")
    assert await says() == (NOWHERE, "")
    with working_for(origin), working_for(NOWHERE):
        assert await says() == (NOWHERE, "")
