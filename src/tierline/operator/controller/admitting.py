"""The admission webhook of a running operator: its certificate, its server, and that the API server asks it.

Each operator answers, whether it leads or not. Certificate and authority are Secrets that all of them share, so that
the API server may ask any; their key is in memory only.
"""

import asyncio
import base64
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from tierline import logs
from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind, Object
from tierline.operator.admission import PATH, SERVICE_PORT, completed, configurations
from tierline.operator.capabilities import NAMED_NAMESPACES
from tierline.operator.catalogue import Catalogue
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.discovering import version_of
from tierline.operator.controller.keeping import Keeper, content_of
from tierline.operator.manifests.certificates import AUTHORITY, CERTIFICATE, KEY, make_authority, make_certificate
from tierline.operator.manifests.secrets import Content, KeptSecret
from tierline.operator.names import FIELD_MANAGER, MANAGED_BY
from tierline.operator.webhook import serving

log = logs.get(__name__)

SECRET = "tierline-operator-webhook"  # noqa: S105  (the name of a Secret)
AUTHORITY_SECRET = f"{SECRET}-authority"
LOOKED_AT_SECONDS = 600.0
"""Between two looks at the certificate's end, and at whether the API server still asks."""
CONFIGURATIONS = {
    name: Kind("admissionregistration.k8s.io/v1", name, f"{name.lower()}s", is_namespaced=False)
    for name in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
}
"""What makes the API server ask."""


async def admit(
    cluster: Cluster, config: OperatorConfig, catalogue: Callable[[], Catalogue], started: Callable[[str], None]
) -> None:
    """Answer the API server without end.

    Parameters
    ----------
    cluster
        Whose API server is to ask.
    config
        Where to listen, and by which Service or URL that is reached.
    catalogue
        Gives the catalogue of the moment.
    started
        Told the ``host:port`` once it is listened there.

    Raises
    ------
    TierlineError
        The API does not answer, or refuses; or the address cannot be had.
    """
    content = await _kept(cluster, config)
    shown = context_of(content)
    watched = config.watched_namespaces
    selected = watched if await version_of(cluster) >= NAMED_NAMESPACES else ()
    async with serving(config.webhook, lambda: shown, catalogue, watched) as address:
        started(address)
        while True:
            trusted = base64.b64encode(content[AUTHORITY]).decode()
            client = {**_reached_by(config), "caBundle": trusted}
            for wanted in configurations(client, config.namespace, selected):
                await _have(cluster, wanted)
            await asyncio.sleep(LOOKED_AT_SECONDS)
            newest = await _kept(cluster, config)
            if newest != content:
                content, shown = newest, context_of(newest)
                log.info("certificate of the webhook is another one")


async def _have(cluster: Cluster, wanted: Object) -> None:
    kind, name = CONFIGURATIONS[wanted["kind"]], wanted["metadata"]["name"]
    current = await cluster.get(kind, None, name)
    is_ours = current is None or current["metadata"].get("labels", {}).get(MANAGED_BY) == FIELD_MANAGER
    # Who made it, such as Helm, changes it and takes it away again; of the authority alone he does not know.
    await cluster.apply(kind, wanted if is_ours else completed(wanted))


def context_of(content: Content) -> ssl.SSLContext:
    """Return what connections are encrypted with, by the content of a Secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _in_memory(content[CERTIFICATE]) as certificate, _in_memory(content[KEY]) as key:
        context.load_cert_chain(certificate, key)
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give a file that is on no disk: OpenSSL reads nothing else."""
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _reached_by(config: OperatorConfig) -> dict[str, object]:
    if "://" in config.webhook_address:
        return {"url": config.webhook_address.rstrip("/") + PATH}
    return {
        "service": {"namespace": config.namespace, "name": config.webhook_address, "path": PATH, "port": SERVICE_PORT}
    }


def _names(config: OperatorConfig) -> tuple[str, ...]:
    if "://" in config.webhook_address:
        return (urlsplit(config.webhook_address).hostname or "",)
    return (f"{config.webhook_address}.{config.namespace}.svc",)


async def _kept(cluster: Cluster, config: OperatorConfig) -> Content:
    """Return certificate and key, made where there are none that will do."""
    names = _names(config)
    authority = (config.namespace, AUTHORITY_SECRET)
    wanted = (
        KeptSecret(
            namespace=config.namespace,
            name=AUTHORITY_SECRET,
            make=lambda existing, _authority, now: make_authority(existing, now),
        ),
        KeptSecret(
            namespace=config.namespace,
            name=SECRET,
            make=lambda existing, signer, now: make_certificate(existing, signer, names, now),
            type="kubernetes.io/tls",
            signed_by=authority,
        ),
    )
    labels = {"labels": {MANAGED_BY: FIELD_MANAGER}}
    kept = await Keeper(cluster).keep(wanted, labels, {}, datetime.now(UTC))
    if kept.failures:
        raise ClusterRefused("; ".join(kept.failures.values()), HTTPStatus.UNPROCESSABLE_ENTITY)
    return await content_of(cluster, config.namespace, SECRET)
