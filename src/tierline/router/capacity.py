"""What an engine's ``/metrics`` says of the size of its KV cache. No sockets here; the health checker asks.

vLLM shows its cache configuration as labels of ``vllm:cache_config_info``, a series for each data-parallel engine; in
vLLM 0.32 each has the sum of all engines' blocks, so any of them will do.
"""

import re
from typing import NamedTuple

_SERIES = re.compile(rb"^vllm:cache_config_info\{.*\}", re.MULTILINE)
_BLOCKS = re.compile(rb'[{,]num_gpu_blocks="(\d{1,18})"')
_BLOCK_TOKENS = re.compile(rb'[{,]block_size="(\d{1,18})"')


class CacheCapacity(NamedTuple):
    """The size of an engine's own KV cache."""

    blocks: int
    block_tokens: int


def cache_capacity(exposition: bytes) -> CacheCapacity | None:
    """Return what a page in Prometheus' text format says; ``None`` where it does not.

    >>> cache_capacity(b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096"} 1.0\\n')
    CacheCapacity(blocks=4096, block_tokens=16)
    """
    series = _SERIES.search(exposition)
    if series is None:
        return None
    blocks, block_tokens = _BLOCKS.search(series[0]), _BLOCK_TOKENS.search(series[0])
    if blocks is None or block_tokens is None or not int(blocks[1]) or not int(block_tokens[1]):
        return None
    return CacheCapacity(int(blocks[1]), int(block_tokens[1]))
