"""What the connector must know about the engine it lives in; an engine it cannot serve correctly is refused here.

Everything is read from vLLM's configuration once, at start. A refusal names what was found and what to change.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, UniformTypeKVCacheSpecs

from tierline.connectors.vllm.identity import weights_fingerprint
from tierline.errors import ConfigurationError, EngineError
from tierline.prefix import CHUNK_TOKENS, Shard

if TYPE_CHECKING:
    from vllm.config import VllmConfig

VLLM_SERIES = "032"
"""The vLLM whose layouts these are; another may arrange blocks otherwise under the same name."""

_VOLATILE_MODEL_KEYS = frozenset({"_name_or_path", "name_or_path", "transformers_version"})
_DRAFTS_WITHOUT_KV = frozenset({"ngram", "ngram_gpu", "suffix"})


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Sizes that both halves of the connector share.

    Parameters
    ----------
    block_tokens
        Tokens of one of the engine's KV blocks.
    layer_names
        The layers whose KV is stored, in the order of their bytes in a chunk.
    tensor_size, pipeline_size
        Sizes of the parallel groups.
    has_prefix_cache
        The engine keeps a prefix cache of its own.
    loads_between_steps
        Loads run while other requests are computed. Otherwise a load runs inside the step that needs it.
    """

    block_tokens: int
    layer_names: tuple[str, ...]
    tensor_size: int
    pipeline_size: int
    has_prefix_cache: bool
    loads_between_steps: bool

    @property
    def blocks_per_chunk(self) -> int:
        """Engine blocks in a stored chunk."""
        return CHUNK_TOKENS // self.block_tokens


def read_shape(vllm_config: "VllmConfig", kv_cache_config: KVCacheConfig) -> EngineShape:
    """Return the engine's shape.

    Raises
    ------
    EngineError
        The engine is set up in a way that the connector does not handle.
    ConfigurationError
        A setting of the connector's own part of the command line is not allowed.
    """
    transfer = vllm_config.kv_transfer_config
    if transfer.kv_load_failure_policy != "recompute":
        raise ConfigurationError(
            "kv_load_failure_policy",
            transfer.kv_load_failure_policy,
            "recompute (a failed load must not fail a request)",
        )
    if transfer.kv_role != "kv_both":
        raise ConfigurationError("kv_role", transfer.kv_role, "kv_both")
    _refuse_unsupported(vllm_config)
    group = _only_group(kv_cache_config)
    parallel = vllm_config.parallel_config
    return EngineShape(
        block_tokens=group.kv_cache_spec.block_size,
        layer_names=tuple(group.layer_names),
        tensor_size=parallel.tensor_parallel_size,
        pipeline_size=parallel.pipeline_parallel_size,
        has_prefix_cache=bool(vllm_config.cache_config.enable_prefix_caching),
        # With more than one batch in flight vLLM cannot take a failed load back inside the step (it dies on an
        # assertion), so loads run between steps there. With one batch, a load inside the step is the faster one: a
        # load between steps starts only after the forward pass of the others.
        loads_between_steps=vllm_config.max_concurrent_batches > 1,
    )


def kv_shard(
    vllm_config: "VllmConfig", kv_cache_config: KVCacheConfig, shape: EngineShape, tensors: Sequence[torch.Tensor]
) -> Shard:
    """Return how this worker's KV is cut and laid out; to be called in the worker.

    Parameters
    ----------
    tensors
        The KV tensors in the order of ``shape.layer_names``. Their inner shapes and strides are part of the layout: an
        attention backend may arrange the same block in another way.
    """
    inner = [(tuple(tensor.shape[1:]), tensor.stride()[1:], str(tensor.dtype)) for tensor in tensors]
    digest = blake3(repr(inner).encode()).hexdigest(length=6)
    kv_dtype = vllm_config.cache_config.cache_dtype
    if kv_dtype == "auto":
        kv_dtype = str(tensors[0].dtype).removeprefix("torch.")
    return Shard(
        kv_dtype=kv_dtype,
        layout=f"vllm{VLLM_SERIES}-{kv_cache_config.kv_cache_layout}-b{shape.block_tokens}-{digest}",
        tensor_rank=get_tp_group().rank_in_group,
        tensor_size=shape.tensor_size,
        pipeline_rank=get_pp_group().rank_in_group,
        pipeline_size=shape.pipeline_size,
    )


def model_identity(vllm_config: "VllmConfig") -> str:
    """Return 64 hex digits that are equal for two engines exactly if equal tokens have equal KV in both.

    They stand for the weights' fingerprint and the model configuration as it is after every override.
    """
    model = vllm_config.model_config
    if vllm_config.load_config.load_format == "dummy":
        raise EngineError("load_format dummy makes up its weights, so their KV has no identity; load real weights")
    facts = {
        "weights": weights_fingerprint(_model_files(model.model, model.revision)),
        "configuration": _without_names(model.hf_config.to_dict()),
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "runner": model.runner_type,
        "implementation": str(model.model_impl),
        # Some rotary embeddings choose their factors by the longest context.
        "max_model_len": model.max_model_len,
        "sliding_window_disabled": model.disable_sliding_window,
        "media": str(getattr(model.multimodal_config, "mm_processor_kwargs", None)),
    }
    return blake3(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _refuse_unsupported(vllm_config: "VllmConfig") -> None:
    parallel = vllm_config.parallel_config
    if parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        raise EngineError(
            "context parallelism cuts KV blocks across ranks, which the Tierline connector does not handle"
        )
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method not in _DRAFTS_WITHOUT_KV:
        raise EngineError(
            f"speculative decoding by {speculative.method!r} keeps KV of a draft model, which the Tierline connector "
            f"does not handle; use one of {', '.join(sorted(_DRAFTS_WITHOUT_KV))} or none"
        )
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        raise EngineError("calculate_kv_scales gives every engine scales of its own, so their KV cannot be shared")


def _only_group(kv_cache_config: KVCacheConfig) -> Any:
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise EngineError(
            f"the model has {len(groups)} KV cache groups and the Tierline connector handles one; for models that mix "
            "full and sliding-window attention add --disable-hybrid-kv-cache-manager, models with recurrent layers "
            "are not supported"
        )
    (group,) = groups
    spec = group.kv_cache_spec
    layer_specs: Iterable[object] = (
        spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else (spec,)
    )
    for layer_spec in layer_specs:
        if not isinstance(layer_spec, FullAttentionSpec) or layer_spec.non_causal:
            raise EngineError(
                f"KV of kind {type(layer_spec).__name__} does not depend on its prefix alone; the Tierline connector "
                "handles causal attention over the whole prefix"
            )
    if CHUNK_TOKENS % spec.block_size:
        raise EngineError(
            f"a KV block of {spec.block_size} tokens does not divide a chunk of {CHUNK_TOKENS}; set --block-size to "
            "16, 32, 64, 128 or 256"
        )
    return group


def _model_files(model: str, revision: str | None) -> Path:
    path = Path(model)
    if path.exists():
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise EngineError(
            f"the weights of {model!r} are neither a local folder nor in the local Hugging Face cache, so they cannot "
            "be fingerprinted; download them to a folder and pass that"
        )
    return Path(cached).parent


def _without_names(configuration: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_names(value) if isinstance(value, dict) else value
        for key, value in configuration.items()
        if key not in _VOLATILE_MODEL_KEYS
    }
