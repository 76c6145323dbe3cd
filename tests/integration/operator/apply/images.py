"""What the images of the tests' pods run here: ours themselves, vLLM's as a simulated engine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tests.kubelet import Container, Program, as_it_says

VLLM_PORT = "8000"
DECODE_RATE = "SIMULATED_DECODE_RATE"
"""A variable of the engine's container: tokens generated per second, where answers are to take their time."""


def simulated_vllm(container: Container) -> list[str]:
    """Return an engine that takes the names, the port and the cache of vLLM's command line and LMCache's variables."""
    names = _values(container.words, "--served-model-name") or _values(container.words, "--model")
    store = container.environment.get("LMCACHE_REMOTE_URL")
    bucket = json.loads(container.environment.get("LMCACHE_EXTRA_CONFIG", "{}")).get("sagemaker_hyperpod_bucket")
    command = [
        *("tierline", "simulate-engine", "--host", container.address),
        *("--port", next(iter(_values(container.words, "--port")), VLLM_PORT)),
        *("--prefill-rate", "100000", "--decode-rate", container.environment.get(DECODE_RATE, "1000")),
        *(part for name in names for part in ("--adapter", name)),
        *(("--store", store) if store is not None else ()),
        *(("--store-bucket", bucket) if bucket is not None else ()),
    ]
    return as_it_says(replace(container, argv=command))


IMAGES: Mapping[str, Program] = {
    "ghcr.io/tierline/": as_it_says,
    "public.ecr.aws/deep-learning-containers/vllm:": simulated_vllm,
    "vllm/vllm-openai:": simulated_vllm,
}


def _values(argv: Sequence[str], flag: str) -> list[str]:
    """Return what follows a flag, up to the next one."""
    found: list[str] = []
    is_wanted = False
    for word in argv:
        name, _, value = word.partition("=")
        if word.startswith("--"):
            is_wanted = name == flag
            found += [value] if is_wanted and value else []
        elif is_wanted:
            found.append(word)
    return found
