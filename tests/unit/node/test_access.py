"""Tokens: who may do what, and files that say so wrongly."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import AccessDenied, UsageError
from tierline.node.access import Access, Pass, Right
from tierline.node.buckets import covers, parse_pattern
from tierline.wire import messages, routes
from tierline.wire.http import HttpRefusal

ENGINE, REPORTS, OPERATOR = "engine-0123456789", "reports-0123456789", "operator-0123456789"
FILE = f"""
tokens:
  - {{name: engine, token: {ENGINE}, rights: {{"*": [read, write]}}}}
  - name: reports
    sha256: {hashlib.sha256(REPORTS.encode()).hexdigest()}
    rights: {{"team-a/*": [read], public: [read, write]}}
  - {{name: operator, token: {OPERATOR}, rights: {{"*": [admin]}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(FILE)
    return file


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def status_of(access: Access, token: str | None, route: routes.Route) -> int:
    try:
        access.admit(route, bearer(token) if token is not None else None)
    except HttpRefusal as refusal:
        return refusal.status.value
    return 200


GET = routes.GetObject("team-a/llama", "k", head_only=False)
LEASE = routes.AcquireLease("team-b", "k", 1.0, 1.0)


@pytest.mark.parametrize(
    ("token", "route", "status"),
    [
        (None, routes.Health(), 200),
        (None, routes.Readiness(), 200),
        (None, routes.Stats(), 401),
        (None, routes.ReleaseLease("x"), 401),
        (None, GET, 401),
        ("not-known-0123456789", GET, 401),
        ("not-known-0123456789", routes.Metrics(), 401),
        (REPORTS, routes.Metrics(), 200),
        (REPORTS, routes.Stats(), 200),
        (REPORTS, routes.ReleaseLease("x"), 200),
        (REPORTS, GET, 200),
        (REPORTS, LEASE, 403),
        (REPORTS, routes.PutObject("team-a/llama", "k"), 403),
        (REPORTS, routes.PutObject("public", "k"), 200),
        (REPORTS, routes.PutObject("public2", "k"), 403),
        (ENGINE, LEASE, 200),
        (ENGINE, routes.DeleteObject("b", "k"), 403),
        (OPERATOR, routes.DeleteObject("b", "k"), 200),
        (ENGINE, routes.FlushObjects("b", None), 403),
        (OPERATOR, routes.FlushObjects("b", None), 200),
        (ENGINE, routes.PinObject("b", "k", 1.0), 403),
        (ENGINE, routes.ListLeases("", 1), 403),
        (ENGINE, routes.ListNamespaces(), 403),
        (ENGINE, routes.ListOrphans(), 403),
        (ENGINE, routes.ReleaseOrphans("client"), 403),
        (OPERATOR, GET, 403),
    ],
)
def test_a_route_is_open_to_who_has_the_right(file: Path, token: str | None, route: routes.Route, status: int) -> None:
    assert status_of(Access(file), token, route) == status


def test_without_a_file_everybody_may_do_everything() -> None:
    access = Access(None)
    assert access.is_open
    assert status_of(access, None, routes.DeleteObject("b", "k")) == 200
    assert status_of(access, "whatever it may be", GET) == 200
    Pass(access, "").require_segment(["*"], writable=True)


def test_a_client_without_a_token_may_do_what_anonymous_says_and_no_more(file: Path) -> None:
    file.write_text(FILE + "anonymous: {lmcache: [read, write]}\n")
    access = Access(file)
    assert access.is_open
    assert status_of(access, None, routes.PutObject("lmcache", "k")) == 200
    assert status_of(access, None, routes.ReleaseLease("x")) == 200
    assert status_of(access, None, routes.PutObject("vllm", "k")) == 403
    assert status_of(access, None, routes.Metrics()) == 401
    assert status_of(access, "not-known-0123456789", routes.PutObject("lmcache", "k")) == 401


@pytest.mark.parametrize("header", [b"Basic YWJj", b"Bearer", b"Bearer ", b"", b"\xff"])
def test_another_authorization_than_a_bearer_token_is_refused(file: Path, header: bytes) -> None:
    with pytest.raises(HttpRefusal) as refused:
        Access(file).require(header, "b", Right.READ)
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_scheme_is_read_in_either_case(file: Path) -> None:
    Access(file).require(b"bearer " + ENGINE.encode(), "b", Right.READ)


def test_every_bucket_needs_a_right_on_every_bucket(file: Path) -> None:
    access = Access(file)
    access.require(bearer(OPERATOR), None, Right.ADMIN)
    with pytest.raises(HttpRefusal, match=r"reports may not read bucket \*"):
        access.require(bearer(REPORTS), None, Right.READ)


def test_a_segment_is_mapped_only_with_a_right_on_every_bucket_in_it(file: Path) -> None:
    access = Access(file)
    Pass(access, ENGINE).require_segment(["*"], writable=True)
    Pass(access, REPORTS).require_segment(["team-a/llama", "team-a/x*", "public"], writable=False)
    Pass(access, REPORTS).require_segment(["public"], writable=True)
    for buckets, writable in ((["*"], False), (["team-*"], False), (["public", "team-b"], False), (["team-a/*"], True)):
        with pytest.raises(AccessDenied, match="who maps a segment has all of it"):
            Pass(access, REPORTS).require_segment(buckets, writable=writable)
    with pytest.raises(AccessDenied, match="asks for a token"):
        Pass(access, "").require_segment(["public"], writable=False)


def test_requests_of_the_socket_are_checked_by_their_bucket(file: Path) -> None:
    rights = Pass(Access(file), REPORTS)
    rights.require(messages.PrefixLease(1, "team-a/x", ["k"], 1.0))
    rights.require(messages.Reserve(1, "public", ["k"], [1]))
    rights.require(messages.Describe(1))
    for denied in (
        messages.PrefixLease(1, "team-b", ["k"], 1.0),
        messages.Suspect(1, "team-b", "k"),
        messages.Commit(1, "team-a/x", []),
        messages.Delete(1, "public", ["k"]),
    ):
        with pytest.raises(AccessDenied, match="reports may not"):
            rights.require(denied)


def test_a_token_that_is_withdrawn_ends_with_the_reading_of_the_file(file: Path) -> None:
    access = Access(file)
    rights = Pass(access, REPORTS)
    rights.require(messages.Describe(1))
    file.write_text(FILE.replace("name: reports", "name: others").replace("sha256: ", f"sha256: {'a' * 64} # "))
    os.utime(file, ns=(1, 1))
    access.reload()
    assert status_of(access, REPORTS, GET) == 401
    with pytest.raises(AccessDenied):
        rights.require(messages.Describe(1))


def test_a_file_that_has_not_changed_is_not_read_again(file: Path) -> None:
    access = Access(file)
    file.with_suffix(".old").hardlink_to(file)
    access.reload()
    assert access.failed_reloads == 0


@pytest.mark.parametrize(
    "content", ["tokens: [", "tokens: []", "tokens: [{name: 2026-02-30, token: a-secret-0123456789}]", None]
)
def test_a_file_that_becomes_unusable_leaves_the_former_tokens_in_force(file: Path, content: str | None) -> None:
    access = Access(file)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
        os.utime(file, ns=(1, 1))
    access.reload()
    assert access.failed_reloads == 1
    assert status_of(access, ENGINE, LEASE) == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "the file"),
        ("tokens: [{name: a, token: short}]", r"tokens\.0\.token: got '\(not shown\)'; allowed: 16 printable"),
        ("tokens: [{name: a, token: 0123 456789012345}]", r"got '\(not shown\)'; allowed: .*without spaces"),
        ("tokens: [{name: a, sha256: ABC}]", r"tokens\.0\.sha256: .* allowed: the SHA-256 of a token, 64 digits"),
        (f"tokens: [{{name: a, sha256: {hashlib.sha256(b'password').hexdigest()}}}]", "a common word's"),
        ("tokens: [{name: a}]", r"tokens\.0: got 'a'; allowed: either token or sha256"),
        (
            f"tokens: [{{name: a, token: {ENGINE}}}, {{name: b, token: {ENGINE}}}]",
            r"tokens\.1: got 'b'; allowed: another token than a's",
        ),
        (f"tokens: [{{name: a, token: {ENGINE}, rights: {{b: [own]}}}}]", r"rights\.b\.0: got 'own'; allowed: 'read'"),
        (f"tokens: [{{name: a, token: {ENGINE}, rights: {{'a*b': [read]}}}}]", r"got 'a\*b'; allowed: a bucket's name"),
        (f"tokens: [{{name: a, token: {ENGINE}, right: {{}}}}]", r"tokens\.0\.right: "),
        ("tokens: \t- x", "is no YAML"),
        (f"tokens: [{{name: 2026-02-30, token: {ENGINE}}}]", "is no YAML"),
        (f"tokens: [{{name: !!int '', token: {ENGINE}}}]", "is no YAML"),
        (f"tokens: [{{name: !!timestamp x, token: {ENGINE}}}]", "is no YAML"),
        ("[" * 5000, "is no YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key_and_never_with_a_secret(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    with pytest.raises(UsageError, match=message) as refused:
        Access(file)
    assert ENGINE not in str(refused.value)


def test_a_greeting_does_not_print_its_token() -> None:
    assert ENGINE not in repr(messages.Hello(1, "client", token=ENGINE))


NAMES = st.text("ab/", min_size=1, max_size=4)
PATTERNS = st.builds(lambda start, end: start + end, NAMES, st.sampled_from(["", "*"])) | st.just("*")


@given(PATTERNS, PATTERNS, NAMES)
def test_a_pattern_that_covers_another_matches_whatever_that_one_matches(wide: str, narrow: str, name: str) -> None:
    if covers([wide], narrow) and covers([narrow], name):
        assert covers([wide], name)


@pytest.mark.parametrize("pattern", ["", "a*b", "**", "é" * 513, 7])
def test_what_is_no_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(ValueError, match="a bucket's name, or"):
        parse_pattern(pattern)
