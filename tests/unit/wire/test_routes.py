"""Paths of the HTTP contract, as values."""

import contextlib
from http import HTTPStatus
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.wire import routes
from tierline.wire.http import HttpRefusal
from tierline.wire.messages import MAX_NAME_BYTES
from tierline.wire.routes import (
    AcquireLease,
    DeleteObject,
    ExplainObject,
    FlushObjects,
    GetObject,
    LeasePrefix,
    ListLeases,
    ListObjects,
    PinObject,
    PutObject,
    ReleaseLease,
    RenewLease,
    StatObject,
    UnpinObject,
    VerifyObject,
)

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80).filter(lambda name: len(name.encode()) <= 1024)


@given(bucket=NAMES, name=NAMES)
def test_any_bucket_and_key_survive_their_quoting(bucket: str, name: str) -> None:
    path = f"/v1/kv/{quote(bucket, safe='')}/{quote(name, safe='')}".encode()
    assert routes.route("PUT", path) == PutObject(bucket, name)
    assert routes.route("GET", path) == GetObject(bucket, name, head_only=False)
    assert routes.route("POST", path + b"/leases?timeout_ms=250&ttl_s=30.0") == AcquireLease(bucket, name, 0.25, 30.0)


@given(method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "X"]), target=st.binary(max_size=80))
def test_any_target_is_routed_or_refused_with_a_status(method: str, target: bytes) -> None:
    with contextlib.suppress(HttpRefusal):
        assert isinstance(routes.route(method, target), routes.Route)


def test_a_key_is_split_off_before_it_is_unquoted() -> None:
    assert routes.route("PUT", b"/v1/kv/b/a%2Fleases") == PutObject("b", "a/leases")
    assert routes.route("PUT", b"/v1/kv/b/a%2525") == PutObject("b", "a%25")


def test_an_unquoted_bucket_may_have_slashes() -> None:
    assert routes.route("PUT", b"/v1/kv/team/a/key") == routes.route("PUT", b"/v1/kv/team%2Fa/key")


def test_the_absolute_form_of_a_target_is_the_same_request() -> None:
    assert routes.route("POST", b"http://node:9200/v1/leases/a-1/release") == ReleaseLease("a-1")


def test_parameters_have_defaults_and_a_long_wait_is_cut() -> None:
    assert routes.route("POST", b"/v1/kv/b/k/leases") == AcquireLease("b", "k", 1.0, 30.0)
    assert routes.route("POST", b"/v1/kv/b/k/leases?timeout_ms=1e9&x&y=1") == AcquireLease("b", "k", 60.0, 30.0)


@pytest.mark.parametrize("query", ["timeout_ms=-1", "timeout_ms=x", "ttl_s=0", "ttl_s=nan", "ttl_s=inf", "ttl_s="])
def test_a_parameter_out_of_bounds_is_named_with_its_value(query: str) -> None:
    with pytest.raises(HttpRefusal, match=query.partition("=")[0]) as refused:
        routes.route("POST", f"/v1/kv/b/k/leases?{query}".encode())
    assert refused.value.status is HTTPStatus.BAD_REQUEST


def test_a_prefix_is_leased_in_a_quoted_bucket() -> None:
    assert routes.route("POST", b"/v1/kv/team%2Fa/leases") == LeasePrefix("team/a")
    assert routes.route("POST", b"/v1/kv/team/a/leases") == AcquireLease("team", "a", 1.0, 30.0)


def test_the_last_part_of_a_path_is_a_key_where_it_could_not_be_a_word() -> None:
    assert routes.route("POST", b"/v1/kv/b/k/verify") == VerifyObject("b", "k")
    assert routes.route("PUT", b"/v1/kv/b/verify") == PutObject("b", "verify")
    assert routes.route("PUT", b"/v1/kv/team/a/verify") == PutObject("team/a", "verify")


def test_a_lease_is_renewed_for_the_time_that_is_asked_for() -> None:
    assert routes.route("POST", b"/v1/leases/a-1/renew?ttl_s=5") == RenewLease("a-1", 5.0)


@pytest.mark.parametrize(
    ("method", "target", "route"),
    [
        ("GET", b"/v1/kv?list", ListObjects(None, "", None, "", 1000)),
        ("GET", b"/v1/kv/team%2Fa?list&prefix=m%40&salt=&limit=5", ListObjects("team/a", "m@", "", "", 5)),
        ("GET", b"/v1/kv/team/a?list&cursor=7&limit=1e9", ListObjects("team/a", "", None, "7", 1000)),
        ("GET", b"/v1/kv/b/k?list=", ListObjects("b/k", "", None, "", 1000)),
        ("GET", b"/v1/kv/b/k?x=1", GetObject("b", "k", head_only=False)),
        ("GET", b"/v1/kv/b/k?anchor=f%66", GetObject("b", "k", head_only=False, anchor="ff")),
        ("HEAD", b"/v1/kv/b/k?anchor=ff", GetObject("b", "k", head_only=True, anchor="ff")),
        ("DELETE", b"/v1/kv?flush", FlushObjects(None, None)),
        ("DELETE", b"/v1/kv/b?flush&salt=t%2B", FlushObjects("b", "t+")),
        ("DELETE", b"/v1/kv/b/k", DeleteObject("b", "k")),
        ("GET", b"/v1/kv/b/k/stat", StatObject("b", "k")),
        ("HEAD", b"/v1/kv/b/k/stat", GetObject("b/k", "stat", head_only=True)),
        ("GET", b"/v1/kv/b/k%2Fstat", GetObject("b", "k/stat", head_only=False)),
        ("GET", b"/v1/kv/b/explain", GetObject("b", "explain", head_only=False)),
        ("GET", b"/v1/kv/b/k/explain", ExplainObject("b", "k")),
        ("POST", b"/v1/kv/b/k/pin?ttl_s=5", PinObject("b", "k", 5.0)),
        ("POST", b"/v1/kv/b/k/pin", PinObject("b", "k", 3600.0)),
        ("DELETE", b"/v1/kv/b/k/pin", UnpinObject("b", "k")),
        ("GET", b"/v1/leases?limit=3", ListLeases("", 3)),
    ],
)
def test_what_operators_ask_is_told_apart_from_objects(method: str, target: bytes, route: routes.Route) -> None:
    found = routes.route(method, target)
    assert (type(found), found) == (type(route), route)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", b"/v1/kv", 404),
        ("GET", b"/v1/kv/?list", 400),
        ("DELETE", b"/v1/kv/?flush", 400),
        ("POST", b"/v1/kv?flush", 404),
        ("DELETE", b"/v1/kv", 404),
        ("GET", b"/v1/kv?list&salt=%ff", 400),
        ("POST", b"/v1/leases", 405),
        ("DELETE", b"/v1/buckets", 405),
        ("PUT", b"/v1/kv//k", 400),
    ],
)
def test_what_could_empty_a_bucket_by_mistake_is_refused(method: str, target: bytes, status: int) -> None:
    with pytest.raises(HttpRefusal) as refused:
        routes.route(method, target)
    assert refused.value.status == status


def test_a_query_takes_nothing_from_the_length_that_names_may_have() -> None:
    route = routes.route("POST", b"/v1/kv/" + b"b" * 24 + b"/" + b"k" * 1010 + b"/pin?ttl_s=5")

    assert route == routes.PinObject("b" * 24, "k" * 1010, 5.0)


def test_an_anchor_is_a_parameter_of_a_put_and_of_a_lease() -> None:
    assert routes.route("PUT", b"/v1/kv/b/k?anchor=00%2Fff") == PutObject("b", "k", "00/ff")
    assert routes.route("POST", b"/v1/kv/b/k/leases?anchor=ff&timeout_ms=250") == AcquireLease(
        "b", "k", 0.25, 30.0, "ff"
    )
    assert routes.route("POST", b"/v1/kv/b/k/leases?ttl_s=5&anchor=") == AcquireLease("b", "k", 1.0, 5.0)


@pytest.mark.parametrize("target", [b"/v1/kv/b/k?anchor=%FF", b"/v1/kv/b/k?anchor=" + b"x" * (MAX_NAME_BYTES + 1)])
def test_an_anchor_out_of_bounds_is_refused(target: bytes) -> None:
    with pytest.raises(HttpRefusal) as caught:
        routes.route("PUT", target)
    assert caught.value.status == 400
