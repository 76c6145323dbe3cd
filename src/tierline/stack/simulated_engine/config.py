"""What a simulated engine can be told; rates are of the modelled hardware, not of this machine."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, field_validator

from tierline.configuration import ProgramConfig
from tierline.connectors.lmcache.settings import SCHEMES, parse_url, split_urls


class SimulatedEngineConfig(ProgramConfig):
    """Configuration of ``tierline simulate-engine``."""

    program = "simulate-engine"
    flags: ClassVar[Mapping[str, str]] = {"adapters": "--adapter"}

    host: str = Field(default="127.0.0.1", description="address that the engine listens on")
    port: int = Field(default=8001, ge=0, le=65535, description="port that the engine listens on; 0 takes a free one")
    model: str = Field(default="simulated-model", description="model name that is served; contains 'simulated'")
    adapters: tuple[str, ...] = Field(default=(), description="names of LoRA adapters that are served beside it")
    prefill_rate: float = Field(
        default=2000.0, gt=0, description="prompt tokens computed per second, by the whole engine"
    )
    decode_rate: float = Field(default=50.0, gt=0, description="tokens generated per second, by each sequence")
    cache_blocks: int = Field(default=4096, ge=1, description="blocks of 16 tokens in the KV cache")
    enable_prefix_caching: bool = Field(
        default=True, description="find what earlier prompts left; `--no-enable-prefix-caching` computes all"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="sequences that run at once; more of them queue")
    max_num_batched_tokens: int = Field(
        default=2048, ge=1, description="tokens of one step; longer prompts are chunked"
    )
    store: str | None = Field(
        default=None, description="node store that prefixes are shared through, e.g. http://127.0.0.1:9200"
    )
    store_bucket: str = Field(default="lmcache", min_length=1, description="bucket of the node store for them")
    store_lookup_timeout_ms: int = Field(
        default=1000, gt=0, description="longest look-up there; what is not found by then is computed"
    )
    kv_events_endpoint: str | None = Field(
        default=None, description="ZMQ address of KV events, e.g. tcp://*:5557; needs the extra 'simulate'"
    )

    @field_validator("store")
    @classmethod
    def _has_hosts(cls, store: str | None) -> str | None:
        if store is not None and (not store.startswith((*SCHEMES, "http://", "https://")) or not _urls(store)):
            raise ValueError("http://HOST:PORT, or as LMCache writes it, sagemaker-hyperpod://HOST:PORT[,HOST:PORT…]")
        return store

    @property
    def stores(self) -> tuple[str, ...]:
        """The HTTP addresses of the node stores."""
        return _urls(self.store) if self.store is not None else ()

    @field_validator("model")
    @classmethod
    def _says_what_it_is(cls, model: str) -> str:
        if "simulated" not in model:
            raise ValueError("a name that contains 'simulated', so that nobody takes its figures for a model's")
        return model


def _urls(store: str) -> tuple[str, ...]:
    return split_urls(parse_url(store, use_https=False))
