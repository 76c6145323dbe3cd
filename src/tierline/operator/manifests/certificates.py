"""The certificate that clients are shown: cert-manager's where that is, else one of an authority of our own.

Rule: a certificate is made anew before it counts as expiring, when it is for other names, and when its authority is
another one; else the one that is there stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Literal

from tierline.errors import ConfigurationError
from tierline.operator.capabilities import Capabilities
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations
from tierline.operator.manifests.manifest import Made, Manifest, Notice
from tierline.operator.manifests.routing import entrance_namespace
from tierline.operator.manifests.secrets import Content, KeptSecret
from tierline.operator.names import FIELD_MANAGER, MANAGED_BY, OWNER_UID, routing_service_name, within

CERT_MANAGER = "cert-manager.io/v1"
AUTHORITY_SECRET = "tierline-authority"  # noqa: S105  (the name of a Secret)
CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
AUTHORITY_DAYS = 3650
VALID_DAYS = 365
EXPIRING_DAYS = 60
"""As many days before its end HyperPod calls a certificate *Expiring*; ours is made anew a day earlier."""


@dataclass(frozen=True, kw_only=True)
class CertificateFacts:
    """What a certificate says of itself.

    Parameters
    ----------
    names
        It is for.
    issuer
        Who signed it.
    expires
        When it ends to be valid.
    health
        In HyperPod's words.
    """

    names: tuple[str, ...]
    issuer: str
    expires: datetime
    health: Literal["Valid", "Expiring", "Expired"]


def has_certificate(endpoint: Endpoint) -> bool:
    """Whether the endpoint is to be reached with TLS: where it has ``tlsConfig``."""
    return endpoint.spec.tls_config is not None


def certificate_secret_name(endpoint: Endpoint) -> str:
    """Return the name of the Secret with the certificate, beside the Service that it is for."""
    return within(f"{endpoint.name}-{endpoint.namespace}-tls")


def domain_name(endpoint: Endpoint) -> str | None:
    """Return the name that clients outside know the endpoint by, as ``tlsConfig`` or annotation ``host`` says."""
    tls = endpoint.spec.tls_config
    custom = tls.custom_certificate_config if tls is not None else None
    return custom.domain_name if custom is not None else endpoint.annotation("host")


def certificates(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> Made:
    """Return what has cert-manager make the certificate; without it, :func:`kept_secrets` has who does."""
    if not has_certificate(endpoint):
        return Made()
    if not _is_by_cert_manager(endpoint, capabilities):
        why = "cert-manager is not there"
        if capabilities.serves(CERT_MANAGER, "Certificate"):
            why = "cert-manager has come later, and makes it once annotation tierline.ai/issuer names an issuer"
        where = f"Secret {config.namespace}/{AUTHORITY_SECRET}"
        message = f"{why}: the certificate is signed by the authority in {where}"
        return Made(notices=(Notice("TLSReady", "OwnAuthority", message),))
    namespace, name = entrance_namespace(endpoint, config), certificate_secret_name(endpoint)
    issuers, issuer = _issuer(endpoint, namespace, name)
    return Made((*issuers, _certificate(endpoint, name, namespace, issuer, dnsNames=_names(endpoint, config))))


def kept_secrets(endpoint: Endpoint, capabilities: Capabilities, config: OperatorConfig) -> tuple[KeptSecret, ...]:
    """Return the Secrets of our own authority and of the certificate, where there is no cert-manager to make one."""
    if not has_certificate(endpoint) or _is_by_cert_manager(endpoint, capabilities):
        return ()
    names = tuple(_names(endpoint, config))
    return (
        KeptSecret(
            namespace=config.namespace,
            name=AUTHORITY_SECRET,
            make=lambda existing, _authority, now: make_authority(existing, now),
        ),
        KeptSecret(
            namespace=entrance_namespace(endpoint, config),
            name=certificate_secret_name(endpoint),
            make=lambda existing, authority, now: make_certificate(existing, authority, names, now),
            type="kubernetes.io/tls",
            signed_by=(config.namespace, AUTHORITY_SECRET),
        ),
    )


def _is_by_cert_manager(endpoint: Endpoint, capabilities: Capabilities) -> bool:
    """Whether cert-manager makes the certificate; one that clients trust already stays that of our own authority."""
    is_wanted = endpoint.annotation("issuer") is not None or not endpoint.settled.has_own_certificate
    return is_wanted and capabilities.serves(CERT_MANAGER, "Certificate")


def _names(endpoint: Endpoint, config: OperatorConfig) -> list[str]:
    service = routing_service_name(endpoint.name, endpoint.namespace)
    namespace = entrance_namespace(endpoint, config)
    domain = domain_name(endpoint)
    inside = [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}"]
    return [*([domain] if domain else []), *inside]


# cert-manager ---------------------------------------------------------------------------------------------------------


def _issuer(endpoint: Endpoint, namespace: str, name: str) -> tuple[list[Manifest], dict[str, str]]:
    """Return issuers to be made, and which one signs: the user's, or an authority of the endpoint's own."""
    text = endpoint.annotation("issuer")
    if text is not None:
        kind, _, named = text.rpartition("/")
        if kind not in ("Issuer", "ClusterIssuer") or not named:
            raise ConfigurationError(annotations.path("issuer"), text, "Issuer/NAME or ClusterIssuer/NAME")
        return [], {"kind": kind, "name": named}
    first, authority = within(f"{name}-self-signed"), within(f"{name}-authority")
    return [
        _issuer_of(first, namespace, {"selfSigned": {}}),
        _certificate(
            endpoint,
            authority,
            namespace,
            {"kind": "Issuer", "name": first},
            isCA=True,
            commonName=authority,
            duration=f"{AUTHORITY_DAYS * 24}h",
        ),
        _issuer_of(authority, namespace, {"ca": {"secretName": authority}}),
    ], {"kind": "Issuer", "name": authority}


def _issuer_of(name: str, namespace: str, spec: Mapping[str, Any]) -> Manifest:
    return {
        "apiVersion": CERT_MANAGER,
        "kind": "Issuer",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


def _certificate(endpoint: Endpoint, name: str, namespace: str, issuer: dict[str, str], **spec: Any) -> Manifest:
    usual: dict[str, Any] = {
        "secretName": name,
        # cert-manager gives Secrets no owner: by these we find what is to go with the endpoint.
        "secretTemplate": {"labels": {MANAGED_BY: FIELD_MANAGER, OWNER_UID: endpoint.uid}},
        "issuerRef": {"group": "cert-manager.io", **issuer},
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
    }
    if "isCA" not in spec:
        usual |= {
            "duration": f"{VALID_DAYS * 24}h",
            "renewBefore": f"{(EXPIRING_DAYS + 1) * 24}h",
            "usages": ["digital signature", "key encipherment", "server auth"],
        }
    return {
        "apiVersion": CERT_MANAGER,
        "kind": "Certificate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": usual | spec,
    }


# Our own authority ----------------------------------------------------------------------------------------------------


def make_authority(existing: Content, now: datetime) -> Content:
    """Return certificate and key of an authority; the one that is there, while what it signs can outlive nothing."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if existing.get(CERTIFICATE) and existing.get(KEY):
        present = x509.load_pem_x509_certificate(existing[CERTIFICATE])
        if present.not_valid_after_utc - now > timedelta(days=VALID_DAYS):
            return existing
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Tierline authority {now:%Y-%m-%d %H:%M:%S}")])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {CERTIFICATE: _pem(certificate), KEY: _pem_of_key(key)}


def make_certificate(existing: Content, authority: Content, names: tuple[str, ...], now: datetime) -> Content:
    """Return certificate and key for ``names``, signed by ``authority``; those that are there, while they will do.

    Addresses come behind names.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if _will_do(existing, authority, names, now):
        return existing
    signer = x509.load_pem_x509_certificate(authority[CERTIFICATE])
    signing_key = load_pem_private_key(authority[KEY], password=None)
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)  # as make_authority makes it
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([])  # names are in the extension: 64 characters of a common name are too few
    certificate = (
        _builder(subject, signer.subject, key.public_key(), now, VALID_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
        .sign(signing_key, hashes.SHA256())
    )
    return {CERTIFICATE: _pem(certificate), KEY: _pem_of_key(key), AUTHORITY: authority[CERTIFICATE]}


def describe(certificate: bytes, now: datetime) -> CertificateFacts:
    """Return what a certificate, in PEM, says of itself; raises ``ValueError`` where it is none."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(certificate)
    try:
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        addresses = map(str, extension.value.get_values_for_type(x509.IPAddress))
        names = (*extension.value.get_values_for_type(x509.DNSName), *addresses)
    except x509.ExtensionNotFound:
        names = ()
    left = found.not_valid_after_utc - now
    health: Literal["Valid", "Expiring", "Expired"] = "Valid"
    if left <= timedelta(0):
        health = "Expired"
    elif left <= timedelta(days=EXPIRING_DAYS):
        health = "Expiring"
    return CertificateFacts(
        names=names, issuer=found.issuer.rfc4514_string(), expires=found.not_valid_after_utc, health=health
    )


def _will_do(existing: Content, authority: Content, names: tuple[str, ...], now: datetime) -> bool:
    if not existing.get(CERTIFICATE) or not existing.get(KEY) or existing.get(AUTHORITY) != authority[CERTIFICATE]:
        return False
    facts = describe(existing[CERTIFICATE], now)
    return facts.names == names and facts.expires - now > timedelta(days=EXPIRING_DAYS + 1)


def _builder(subject: Any, issuer: Any, public_key: Any, now: datetime, days: int) -> Any:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now.astimezone(UTC) + timedelta(days=days))
    )


def _general_name(name: str) -> Any:
    """Return a name as clients check it: an address counts as such only."""
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, is_authority: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _pem_of_key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
