"""What of a Kubernetes cluster is wanted, as a setting says it."""

import re
from dataclasses import dataclass

_SERVICE_LABEL = "kubernetes.io/service-name"
_NAME = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
_PORT = r"[0-9]{1,5}|[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SERVICE = re.compile(rf"({_NAME})/({_NAME})(?::({_PORT}))?")
_PODS = re.compile(rf"({_NAME}):([^:]+)(?::({_PORT}))?")


@dataclass(frozen=True)
class Selection:
    """Whose endpoints are wanted.

    Parameters
    ----------
    namespace
        Where they are.
    selector
        Labels of the objects to look at.
    port
        Its name or its number; empty: the only one, or the one called ``http``.
    text
        As it was written.
    """

    namespace: str
    selector: str
    port: str
    text: str


def parse_service(text: str) -> Selection:
    """Read ``NAMESPACE/NAME`` or ``NAMESPACE/NAME:PORT``; raises ``ValueError`` saying what is allowed."""
    match = _SERVICE.fullmatch(text)
    if match is None:
        raise ValueError("NAMESPACE/NAME or NAMESPACE/NAME:PORT")
    return Selection(match[1], f"{_SERVICE_LABEL}={match[2]}", match[3] or "", text)


def parse_pods(text: str) -> Selection:
    """Read ``NAMESPACE:SELECTOR`` or ``NAMESPACE:SELECTOR:PORT``; raises ``ValueError`` saying what is allowed."""
    match = _PODS.fullmatch(text)
    if match is None:
        raise ValueError("NAMESPACE:SELECTOR or NAMESPACE:SELECTOR:PORT, with a selector such as app=vllm")
    return Selection(match[1], match[2], match[3] or "", text)
