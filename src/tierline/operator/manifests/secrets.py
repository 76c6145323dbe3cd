"""Secrets whose content is made once, by chance or by signing, and then kept; manifests only name them.

A manifest is a function of what is wanted, and so cannot hold a secret: applied again, it would be another one. Who
applies manifests reads each of these first, and writes it where :attr:`KeptSecret.make` answers something else.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

Content = Mapping[str, bytes]
"""Of a Secret, by key; empty where there is none yet."""

TOKEN = "token"  # noqa: S105  (the name of the key)
TOKEN_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class KeptSecret:
    """A Secret that must be there before what refers to it can start.

    Parameters
    ----------
    namespace, name
        Of the Secret.
    make
        From its present content, that of the Secret of ``signed_by``, and the time, to what it is to hold; the very
        content that it was given, as long as that will do.
    type
        As Kubernetes has it.
    signed_by
        Namespace and name of another one that is needed to make it, and so comes before it.
    labels
        Of the Secret.
    """

    namespace: str
    name: str
    make: Callable[[Content, Content, datetime], Content]
    type: str = "Opaque"
    signed_by: tuple[str, str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def random_tokens(*keys: str) -> Callable[[Content, Content, datetime], Content]:
    """Return how a Secret is made that has a token of chance under each of ``keys``; one that is there stays."""

    def make(existing: Content, _authority: Content, _now: datetime) -> Content:
        if all(existing.get(key) for key in keys):
            return existing
        fresh = {key: secrets.token_hex(TOKEN_BYTES).encode() for key in keys}
        return {**existing, **fresh, **{key: value for key, value in existing.items() if value}}

    return make
