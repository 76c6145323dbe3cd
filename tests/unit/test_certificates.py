"""Certificates: tried out when they are read, replaced without a restart, and kept where the new one is of no use."""

import datetime as dt
import os
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from tierline.certificates import Certificate, MutualCertificate, is_named
from tierline.errors import ConfigurationError, UsageError

AUTHORITY = trustme.CA()


def write(folder: Path, issued: trustme.LeafCert, name: str = "node") -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, AUTHORITY.issue_cert("node", not_after=dt.datetime(2040, 1, 1, tzinfo=dt.UTC)))


def test_a_certificate_says_until_when_it_is_valid(files: tuple[Path, Path]) -> None:
    certificate = Certificate(*files)
    assert time.gmtime(certificate.expires)[:3] == (2040, 1, 1)
    assert not certificate.asks_clients
    assert certificate.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_clients_are_asked_for_a_certificate_where_authorities_are_given(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    authorities = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authorities)
    certificate = Certificate(*files, authorities)
    assert certificate.asks_clients
    assert certificate.context.verify_mode is ssl.CERT_REQUIRED


def test_a_key_of_another_certificate_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, other_key = write(tmp_path, AUTHORITY.issue_cert("other"), "other")
    with pytest.raises(ConfigurationError, match=r"tls_certificate, tls_key: got .*key values mismatch"):
        Certificate(files[0], other_key)


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    past = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    files = write(tmp_path, AUTHORITY.issue_cert("node", not_before=past - dt.timedelta(1), not_after=past))
    with pytest.raises(ConfigurationError, match="certificate has expired"):
        Certificate(*files)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(files: tuple[Path, Path]) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigurationError, match="without a passphrase"):
        Certificate(*files)


@pytest.mark.parametrize("content", [b"", b"no PEM", None])
def test_what_is_no_certificate_is_refused(files: tuple[Path, Path], content: bytes | None) -> None:
    if content is None:
        files[0].unlink()
    else:
        files[0].write_bytes(content)
    with pytest.raises(UsageError, match="tls_certificate, tls_key"):
        Certificate(*files)


def test_authorities_that_cannot_be_read_are_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigurationError, match="tls_client_ca"):
        Certificate(*files, files[1])


def test_a_new_certificate_is_taken_and_a_broken_one_leaves_it_in_force(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate = Certificate(*files)
    former = certificate.context
    certificate.reload()
    assert certificate.context is former  # nothing has changed

    write(tmp_path, AUTHORITY.issue_cert("node", not_after=dt.datetime(2041, 1, 1, tzinfo=dt.UTC)))
    os.utime(files[0], ns=(1, 1))  # a file system may not tell two writes of one moment apart
    certificate.reload()
    renewed = certificate.context
    assert renewed is not former
    assert time.gmtime(certificate.expires).tm_year == 2041

    files[0].write_bytes(b"half a cert")
    certificate.reload()
    assert certificate.context is renewed
    assert certificate.failed_reloads == 1


def test_a_file_that_goes_while_it_is_tried_out_is_one_that_cannot_be_used(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(*files)
    former = certificate.context
    load_chain = ssl.SSLContext.load_cert_chain

    def load_and_remove(context: ssl.SSLContext, *arguments: Any, **options: Any) -> None:
        load_chain(context, *arguments, **options)
        files[0].unlink()

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_and_remove)
    certificate.reload(if_changed=False)
    assert certificate.context is former
    assert certificate.failed_reloads == 1


def test_a_certificate_among_equals_is_replaced_in_both_directions(files: tuple[Path, Path], tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authorities)
    certificate = MutualCertificate(*files, authorities, option="pool_tls")
    served, shown = certificate.context, certificate.client_context
    assert served.verify_mode is shown.verify_mode is ssl.CERT_REQUIRED
    assert shown.check_hostname
    write(tmp_path, AUTHORITY.issue_cert("another"))
    os.utime(files[0], ns=(1, 1))  # a file system may not tell two writes of one moment apart
    certificate.reload()
    assert certificate.context is not served
    assert certificate.client_context is not shown
    authorities.write_text("nothing")
    certificate.reload()
    assert certificate.failed_reloads == 1


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_options_of_another_name_are_named_in_messages(files: tuple[Path, Path], tmp_path: Path, missing: str) -> None:
    authorities = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authorities)
    files[missing == "key"].write_text("nothing")
    with pytest.raises(ConfigurationError, match="pool_tls_certificate, pool_tls_key"):
        MutualCertificate(*files, authorities, option="pool_tls")


@pytest.mark.parametrize(
    ("issued_for", "name", "is_its_name"),
    [
        (("DNS", "node.example"), "Node.Example", True),
        (("DNS", "node.example"), "other.example", False),
        (("DNS", "*.pool.example"), "node.pool.example", True),
        (("DNS", "*.pool.example"), "pool.example", False),
        (("DNS", "*.pool.example"), "a.node.pool.example", False),
        (("DNS", "*.example"), "pool.example", False),
        (("IP Address", "10.0.0.7"), "10.0.0.7", True),
        (("IP Address", "FD00:0:0:0:0:0:0:7"), "fd00::7", True),
        (("DNS", "10.0.0.7"), "10.0.0.8", False),
        (("email", "node.example"), "node.example", False),
    ],
)
def test_a_certificate_names_hosts_and_addresses(issued_for: tuple[str, str], name: str, is_its_name: bool) -> None:
    assert is_named({"subjectAltName": (issued_for,)}, name) is is_its_name
