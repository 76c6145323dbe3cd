"""What users say in annotations, read and checked; a wrong value is named as ``kubectl`` shows it."""

from collections.abc import Collection

from tierline.configuration import parse_byte_size
from tierline.errors import ConfigurationError
from tierline.operator.endpoint import ANNOTATION_PREFIX, Endpoint


def number(endpoint: Endpoint, key: str, default: int, *, least: int, most: int) -> int:
    """Return the number that the user says under ``tierline.ai/KEY``.

    Raises
    ------
    ConfigurationError
        It is none, or not between ``least`` and ``most``.
    """
    text = endpoint.annotation(key)
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ConfigurationError(path(key), text, f"a whole number from {least} to {most}")
    return int(text)


def switch(endpoint: Endpoint, key: str, *, default: bool) -> bool:
    """Return whether the user says ``true``; raises ``ConfigurationError`` for anything but that and ``false``."""
    return choice(endpoint, key, "true" if default else "false", ("true", "false")) == "true"


def choice(endpoint: Endpoint, key: str, default: str, allowed: Collection[str]) -> str:
    """Return which of some words the user says; raises ``ConfigurationError`` for another one."""
    text = endpoint.annotation(key)
    if text is None:
        return default
    if text not in allowed:
        raise ConfigurationError(path(key), text, ", ".join(allowed))
    return text


def size(endpoint: Endpoint, key: str) -> int | None:
    """Return the bytes that the user says, or ``None``; raises ``ConfigurationError`` for what is no size."""
    text = endpoint.annotation(key)
    if text is None:
        return None
    try:
        return parse_byte_size(text)
    except ValueError as error:
        raise ConfigurationError(path(key), text, str(error)) from None


def path(key: str) -> str:
    """Return where the annotation stands in the resource."""
    return f"metadata.annotations[{ANNOTATION_PREFIX}{key}]"
