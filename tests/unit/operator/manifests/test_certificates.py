"""Certificates of our own authority: real ones, shown by a real server of TLS and checked by OpenSSL."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.endpoints import endpoint

from tierline.operator.assumed import cluster
from tierline.operator.config import OperatorConfig
from tierline.operator.manifests.certificates import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    describe,
    kept_secrets,
    make_authority,
    make_certificate,
)

NAMES = (
    "demo.example.com",
    "a-service-whose-name-is-longer-than-a-common-name-may-be.a-long-namespace.svc",
    "10.0.0.5",
    "fd00::7",
)
NOW = datetime.now(UTC).replace(microsecond=0)


def handshake(folder: Path, content: dict[str, bytes], authority: bytes, name: str) -> None:
    (folder / "crt").write_bytes(content[CERTIFICATE])
    (folder / "key").write_bytes(content[KEY])
    (folder / "ca").write_bytes(authority)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder / "crt", folder / "key")
    client_context = ssl.create_default_context(cafile=folder / "ca")
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 has it
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("name", NAMES)
def test_clients_that_trust_the_authority_take_the_certificate_for_each_of_its_names(name: str, tmp_path: Path) -> None:
    authority = make_authority({}, NOW)
    content = dict(make_certificate({}, authority, NAMES, NOW))
    handshake(tmp_path, content, content[AUTHORITY], name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, content, content[AUTHORITY], "other.example.com")


def test_clients_that_trust_another_authority_do_not(tmp_path: Path) -> None:
    content = dict(make_certificate({}, make_authority({}, NOW), NAMES, NOW))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, content, make_authority({}, NOW + timedelta(seconds=1))[CERTIFICATE], NAMES[0])


def test_a_certificate_stays_until_sixty_one_days_before_its_end() -> None:
    authority = make_authority({}, NOW)
    content = make_certificate({}, authority, NAMES, NOW)
    assert make_certificate(content, authority, NAMES, NOW + timedelta(days=303)) is content
    renewed = make_certificate(content, authority, NAMES, NOW + timedelta(days=304, minutes=1))
    assert renewed is not content
    assert renewed[AUTHORITY] == content[AUTHORITY]


def test_other_names_and_another_authority_need_another_certificate() -> None:
    authority = make_authority({}, NOW)
    content = make_certificate({}, authority, NAMES, NOW)
    assert make_certificate(content, authority, NAMES[:1], NOW) is not content
    other = make_authority({}, NOW)
    assert make_certificate(content, other, NAMES, NOW)[AUTHORITY] == other[CERTIFICATE]


def test_an_authority_stays_while_what_it_signs_ends_before_it() -> None:
    authority = make_authority({}, NOW)
    assert make_authority(authority, NOW + timedelta(days=3284)) is authority
    assert make_authority(authority, NOW + timedelta(days=3286)) is not authority


@pytest.mark.parametrize(("days", "health"), [(0, "Valid"), (304, "Valid"), (306, "Expiring"), (366, "Expired")])
def test_a_certificate_says_how_it_is(days: int, health: str) -> None:
    content = make_certificate({}, make_authority({}, NOW), NAMES, NOW)
    facts = describe(content[CERTIFICATE], NOW + timedelta(days=days))
    assert facts.health == health
    assert facts.names == NAMES
    assert facts.issuer.startswith("CN=Tierline authority")
    assert facts.expires == NOW + timedelta(days=365)


def test_the_authority_comes_before_what_it_signs() -> None:
    first, second = kept_secrets(endpoint(), cluster(), OperatorConfig())
    assert second.signed_by == (first.namespace, first.name)
    authority = first.make({}, {}, NOW)
    content = second.make({}, authority, NOW)
    assert "demo-default-routing-service.default.svc" in describe(content[CERTIFICATE], NOW).names


def test_with_cert_manager_there_is_none_of_our_own() -> None:
    assert kept_secrets(endpoint(), cluster(["cert-manager"]), OperatorConfig()) == ()
    assert kept_secrets(endpoint({"tlsConfig": None}), cluster(), OperatorConfig()) == ()
