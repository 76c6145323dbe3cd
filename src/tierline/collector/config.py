"""What the collector can be told. ``docs/proxy.md`` has an entry for every key; a test holds it to that."""

import re
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tierline.configuration import ByteSize
from tierline.dimensions import DimensionedConfig

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TARGET_ALLOWED = "NAME=URL, such as model-container=http://127.0.0.1:8000/metrics, each name once"


class CollectorConfig(DimensionedConfig):
    """Configuration of ``tierline collector``."""

    program = "collector"
    flags: ClassVar[Mapping[str, str]] = {"targets": "--target"}

    host: str = Field(default="127.0.0.1", description="address that the collector listens on")
    port: int = Field(default=9464, ge=0, le=65535, description="port of /metrics and /healthz; 0 takes a free one")
    targets: tuple[str, ...] = Field(
        min_length=1, description="whose metrics are read: NAME=URL; the name is the label metric_source"
    )
    interval_s: float = Field(default=15.0, gt=0, le=3600, description="seconds between two readings of a target")
    timeout_s: float = Field(default=10.0, gt=0, description="seconds that a target has to answer")
    page_bytes: ByteSize = Field(default=16 * 1024**2, ge=1024, description="most that is read of a target")
    otlp_endpoint: str | None = Field(
        default=None, description="URL that metrics are sent to after each reading, by OTLP over HTTP; none: nowhere"
    )

    @field_validator("targets")
    @classmethod
    def _are_named_urls(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        names = [entry.partition("=")[0] for entry in entries]
        if len(set(names)) < len(names) or not all(map(_NAME.fullmatch, names)):
            raise ValueError(_TARGET_ALLOWED)
        if not all(_is_http(entry.partition("=")[2]) for entry in entries):
            raise ValueError(_TARGET_ALLOWED)
        return entries

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_http(url):
            raise ValueError("a URL such as http://127.0.0.1:4318, without a password")
        return url and url.rstrip("/")

    @property
    def urls(self) -> dict[str, str]:
        """Where each target's metrics are, by its name."""
        return {name: url for name, _, url in (entry.partition("=") for entry in self.targets)}


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    # Both URLs are logged: a password in one would be too.
    is_named = bool(parts.hostname) and "@" not in parts.netloc
    return parts.scheme in ("http", "https") and is_named and url.isascii() and url.isprintable()
