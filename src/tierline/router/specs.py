"""What is said of an endpoint from outside, by a flag, a file or the admin API: one model, validated once.

A wrong value is named with its place: ``endpoints.yaml[2].weight``.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tierline.errors import ConfigurationError, UsageError
from tierline.router.endpointkeys import read_key
from tierline.router.events.addresses import parse_addresses

MAX_ENDPOINTS = 256
"""Each has a bit in masks that every request computes with."""

MAX_WEIGHTS_LENGTH = 128

Role = Literal["prefill", "decode"]
ROLES: frozenset[Role] = frozenset({"prefill", "decode"})
"""What an endpoint may do for a request; most do both."""


class EndpointSpec(BaseModel):
    """An endpoint that is wanted.

    Parameters
    ----------
    url
        Where it serves; its name everywhere.
    weight
        Its share of the load, against the others'; not so small that dividing by it gives no number.
    roles
        What it takes.
    models
        Names that it serves; ``None``: those that its ``/v1/models`` lists.
    kv_events
        Where it publishes KV events (:mod:`~tierline.router.events.addresses`).
    node_events
        Where the node store that its engine reads publishes them.
    weights
        A name for what its KV is of, the same for endpoints that may take over each other's; ``None``: not known, and
        then it is taken to be that of the others of which it is not known either.
    api_key_file
        File with the key that it asks of the router; ``None``: the router's setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    weight: float = Field(default=1.0, ge=1e-6, le=1000, allow_inf_nan=False)
    roles: frozenset[Role] = Field(default=ROLES, min_length=1)
    models: frozenset[str] | None = Field(default=None, min_length=1)
    kv_events: str | None = None
    node_events: str | None = None
    weights: str | None = Field(default=None, max_length=MAX_WEIGHTS_LENGTH, pattern=r"^[!-~]([ -~]*[!-~])?$")
    api_key_file: Path | None = None

    @field_validator("api_key_file")
    @classmethod
    def _holds_a_key(cls, file: Path | None) -> Path | None:
        if file is not None:
            try:
                read_key(file, "api_key_file")
            except UsageError as error:
                raise ValueError(f"a file with an API key ({error})") from None
        return file

    @field_validator("kv_events", "node_events")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None:
            parse_addresses(address)
        return address

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        return plain_url(url)


def plain_url(url: str) -> str:
    """Return an endpoint's URL in its one spelling; raises ``ValueError`` saying what is allowed."""
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(_URL_ALLOWED) from None
    is_bare = not (parts.path or parts.query or parts.fragment or parts.username)
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    if not is_http or not is_bare or not url.isascii() or not url.isprintable():
        raise ValueError(_URL_ALLOWED)
    return url


def plain_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """Return endpoints' URLs in their one spelling; raises ``ValueError`` where one is none, or there twice."""
    plain = tuple(map(plain_url, urls))
    if len(set(plain)) < len(plain):
        raise ValueError("each URL once")
    return plain


def require_addresses(entries: Sequence[str], endpoints: Collection[str]) -> None:
    """Raise ``ValueError`` unless each of ``entries`` says where one of ``endpoints`` publishes events."""
    for entry in entries:
        url, is_pair, address = entry.partition("=")
        if not is_pair or url not in endpoints:
            raise ValueError("URL=ADDRESS with the URL of an --endpoint")
        parse_addresses(address)


def read_spec(content: object, where: str) -> EndpointSpec:
    """Return the endpoint that ``content`` describes: a URL, or a mapping with the fields of :class:`EndpointSpec`.

    Parameters
    ----------
    content
        As a YAML or JSON document has it.
    where
        Where it was found, for the message.

    Raises
    ------
    ConfigurationError
        Naming the value and what is allowed.
    """
    if isinstance(content, str):
        content = {"url": content}
    if not isinstance(content, dict):
        raise ConfigurationError(where, content, f"a URL, or a mapping with {', '.join(EndpointSpec.model_fields)}")
    try:
        return EndpointSpec.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, (where, *problem["loc"])))
        if problem["type"] == "missing":
            raise ConfigurationError(path, None, "a value, for there is no default") from None
        if problem["type"] == "extra_forbidden":
            raise ConfigurationError(
                path, problem["input"], f"the keys {', '.join(EndpointSpec.model_fields)}"
            ) from None
        allowed = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise ConfigurationError(path, problem["input"], allowed) from None


def read_specs(content: object, where: str) -> tuple[EndpointSpec, ...]:
    """Return the endpoints of a list; raises as :func:`read_spec`."""
    if not isinstance(content, list):
        raise ConfigurationError(where, content, "a list of endpoints; an empty one is written []")
    if len(content) > MAX_ENDPOINTS:
        raise ConfigurationError(where, f"{len(content)} endpoints", f"up to {MAX_ENDPOINTS}")
    specs = tuple(read_spec(entry, f"{where}[{place}]") for place, entry in enumerate(content))
    seen: set[str] = set()
    for place, spec in enumerate(specs):
        if spec.url in seen:
            raise ConfigurationError(f"{where}[{place}].url", spec.url, "each URL once")
        seen.add(spec.url)
    return specs


_URL_ALLOWED = "URLs like http://127.0.0.1:8001: http or https, a host, a port, no path"
