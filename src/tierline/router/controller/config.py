"""What the controller can be told. ``docs/kvaware.md`` has an entry for every key; a test holds it to that."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from tierline.configuration import ByteSize, ProgramConfig
from tierline.router.events.addresses import parse_controller
from tierline.router.specs import plain_url, plain_urls, require_addresses
from tierline.router.strategies.kvaware import KV_INDEX_BYTES


class ControllerConfig(ProgramConfig):
    """Configuration of ``tierline controller``."""

    program = "controller"
    flags: ClassVar[Mapping[str, str]] = {
        "endpoints": "--endpoint",
        "kv_events": "--kv-events",
        "lmcache_instances": "--lmcache-instance",
    }

    endpoints: tuple[str, ...] = Field(default=(), description="URLs of the engines, spelled as the routers spell them")
    kv_events: tuple[str, ...] = Field(default=(), description="where endpoints publish KV events: URL=ADDRESS")
    endpoints_file: Path | None = Field(
        default=None, description="YAML or JSON file that lists endpoints, as for the router; followed as it changes"
    )
    takes_endpoints: bool = Field(
        default=False, description="whether to listen to the endpoints of the routers that are connected, too"
    )
    token_file: Path | None = Field(
        default=None, description="file with the token that routers must show; read again when it changes"
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate that routers are shown over TCP"
    )
    tls_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file with its key, without a passphrase"
    )
    listen: tuple[str, ...] = Field(
        default=("127.0.0.1:9310",), min_length=1, description="where routers connect: unix:PATH or HOST:PORT"
    )
    http: str = Field(
        default="127.0.0.1:9311", description="HOST:PORT or unix:PATH of /healthz, /readyz and /metrics; empty for none"
    )
    lmcache_pull: str = Field(
        default="", description="HOST:PORT that LMCache's workers push to, their controller_pull_url; empty for none"
    )
    lmcache_reply: str = Field(
        default="", validate_default=True, description="HOST:PORT that they ask, their controller_reply_url"
    )
    lmcache_instances: tuple[str, ...] = Field(
        default=(), description="endpoints' lmcache_instance_id, where that is not their URL: URL=ID"
    )
    lmcache_chunk_tokens: int = Field(default=256, ge=1, le=65_536, description="LMCache's chunk_size")
    lmcache_hash: Literal["sha256_cbor", "builtin"] = Field(
        default="sha256_cbor", description="LMCache's pre_caching_hash_algorithm: sha256_cbor or builtin"
    )
    lmcache_none_hash: int | None = Field(
        default=None,
        validate_default=True,
        ge=-(2**63),
        lt=2**64,
        description="NONE_HASH as LMCache logs it at its start; may be left out for sha256_cbor without PYTHONHASHSEED",
    )
    kv_index_bytes: ByteSize = Field(default=KV_INDEX_BYTES, ge=1024**2, description="memory for the index")
    connections: int = Field(default=1024, ge=1, description="routers' connections at once")

    @field_validator("endpoints")
    @classmethod
    def _are_urls(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        return plain_urls(endpoints)

    @field_validator("kv_events")
    @classmethod
    def _are_addresses(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        require_addresses(entries, info.data.get("endpoints", ()))
        return entries

    @field_validator("tls_key")
    @classmethod
    def _belongs_to_a_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_certificate") is None):
            raise ValueError("a PEM file together with tls_certificate")
        return key

    @field_validator("listen")
    @classmethod
    def _are_protected(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for entry in entries:
            if not parse_controller(entry).stays_here and info.data.get("token_file") is None:
                raise ValueError("an address of this machine, or any with a token_file")
        return entries

    @field_validator("lmcache_pull", "lmcache_reply")
    @classmethod
    def _is_for_lmcache(cls, address: str, info: ValidationInfo) -> str:
        if address and parse_controller(address).path:
            raise ValueError("HOST:PORT, or nothing")
        if info.field_name == "lmcache_reply" and bool(address) != bool(info.data.get("lmcache_pull")):
            raise ValueError("HOST:PORT together with lmcache_pull")
        return address

    @field_validator("lmcache_instances")
    @classmethod
    def _are_instances(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            url, _, instance = entry.partition("=")
            if not instance or plain_url(url) != url:
                raise ValueError("URL=ID")
        return entries

    @field_validator("lmcache_none_hash")
    @classmethod
    def _is_known_where_it_is_drawn(cls, none_hash: int | None, info: ValidationInfo) -> int | None:
        if none_hash is None and info.data.get("lmcache_hash") == "builtin":
            raise ValueError("the number that LMCache logs as NONE_HASH, for lmcache_hash is builtin")
        return none_hash

    @field_validator("http")
    @classmethod
    def _is_address(cls, http: str) -> str:
        if http:
            parse_controller(http)
        return http
