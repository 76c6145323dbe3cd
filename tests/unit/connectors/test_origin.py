"""What the connector finds out of whose work a request is."""

from types import SimpleNamespace
from typing import Any

import pytest

from tierline.connectors.vllm.origin import origin_of, outer_request_id
from tierline.tracing.context import SAMPLED, Origin, TraceContext

CONTEXT = TraceContext(0xABC, 0xDEF, SAMPLED)


def request(name: str, headers: dict[str, str] | None = None) -> Any:
    return SimpleNamespace(request_id=name, trace_headers=headers)


@pytest.mark.parametrize(
    ("name", "outer"),
    [
        ("chatcmpl-an id-7e1f44aa", "an id"),
        ("cmpl-an id-0-7e1f44aa", "an id"),
        ("cmpl-an id-0", "an id"),
        ("chatcmpl-an id-12-7e1f44aa", "an id-12"),
        ("1_chatcmpl-an id-7e1f44aa", "an id"),
        ("chatcmpl-8e7b2c6e-3f0a-4d4e-9a53-0c6d7d6f3b11-7e1f44aa", "8e7b2c6e-3f0a-4d4e-9a53-0c6d7d6f3b11"),
        ("another form", "another form"),
        ("", ""),
    ],
)
def test_a_request_has_the_id_that_it_came_with(name: str, outer: str) -> None:
    assert outer_request_id(name) == outer


def test_a_place_in_a_trace_is_vllm_s_own_header_or_else_what_the_router_s_id_says() -> None:
    router_s = TraceContext(0x123, 0x456, SAMPLED)
    name = f"chatcmpl-{router_s.request_id()}-7e1f44aa"
    assert origin_of(request(name)) == Origin(router_s.request_id(), router_s)
    for chosen in ("a client's", "i" * 1000):
        assert origin_of(request(f"cmpl-{router_s.request_id(chosen)}-0-7e1f44aa")) == Origin(chosen[:256], router_s)
    assert origin_of(request(name, {"traceparent": CONTEXT.field().decode()})).trace == CONTEXT
    assert origin_of(request("chatcmpl-an id-7e1f44aa", {"tracestate": "a=1"})) == Origin("an id")
