"""What is read from vLLM's real configuration: who is refused, and what makes two engines the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from safetensors.torch import save_file
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

from tierline.connectors.vllm import kv_transfer_config
from tierline.connectors.vllm.engine import model_identity, read_shape
from tierline.errors import ConfigurationError, EngineError
from tierline.prefix import PrefixIdentity

CONFIGURATION = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}


def write_model(folder: Path, weight: float = 1.0) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGURATION))
    save_file({"model.norm.weight": torch.full((4096,), weight)}, str(folder / "model.safetensors"))
    return folder


def engine(model: Path, transfer: dict[str, object] | None = None, **options: Any) -> Any:
    return EngineArgs(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        kv_transfer_config={**kv_transfer_config("/run/node.sock"), **(transfer or {})},
        **options,
    ).create_engine_config()


def group(spec: Any) -> KVCacheGroupSpec:
    return KVCacheGroupSpec(["a", "b"], spec)


def attention(block_tokens: int = 128, **options: Any) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=block_tokens, num_kv_heads=1, head_size=32, dtype=torch.float32, **options)


def cache(*groups: KVCacheGroupSpec) -> KVCacheConfig:
    return KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=list(groups))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def test_an_engine_on_a_cpu_loads_inside_steps(model: Path) -> None:
    shape = read_shape(engine(model), cache(group(attention())))
    assert not shape.loads_between_steps
    assert (shape.block_tokens, shape.blocks_per_chunk, shape.layer_names) == (128, 2, ("a", "b"))


def test_asynchronous_scheduling_makes_loads_run_between_steps(model: Path) -> None:
    config = engine(model)
    config.scheduler_config.async_scheduling = True
    assert read_shape(config, cache(group(attention()))).loads_between_steps


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        ({"kv_load_failure_policy": "fail"}, "kv_load_failure_policy: got 'fail'"),
        ({"kv_role": "kv_producer"}, "kv_role"),
    ],
)
def test_a_role_or_policy_that_could_fail_requests_is_refused(
    model: Path, transfer: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_shape(engine(model, transfer), cache(group(attention())))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([group(attention()), group(attention())], "2 KV cache groups"),
        ([], "0 KV cache groups"),
        ([group(attention(96))], "96 tokens does not divide"),
        ([group(attention(non_causal=True))], "does not depend on its prefix alone"),
        (
            [
                group(
                    SlidingWindowSpec(
                        block_size=128, num_kv_heads=1, head_size=32, dtype=torch.float32, sliding_window=64
                    )
                )
            ],
            "SlidingWindowSpec",
        ),
    ],
)
def test_kv_that_the_connector_does_not_handle_is_refused(
    model: Path, groups: list[KVCacheGroupSpec], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        read_shape(engine(model), cache(*groups))


def test_equal_weights_under_other_paths_are_one_model(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    assert model_identity(engine(model)) == model_identity(engine(other))


def test_weights_swapped_under_one_name_share_no_key(model: Path) -> None:
    before = PrefixIdentity(model=model_identity(engine(model))).root()
    write_model(model, weight=2.0)
    assert PrefixIdentity(model=model_identity(engine(model))).root() != before


@pytest.mark.parametrize(
    "options",
    [{"hf_overrides": {"rms_norm_eps": 0.5}}, {"dtype": "float32"}, {"max_model_len": 256}],
    ids=["configuration", "dtype", "longest context"],
)
def test_an_override_that_changes_kv_makes_another_model(model: Path, options: dict[str, Any]) -> None:
    assert model_identity(engine(model)) != model_identity(engine(model, **options))


def test_made_up_weights_are_refused(model: Path) -> None:
    with pytest.raises(EngineError, match="dummy"):
        model_identity(engine(model, load_format="dummy"))


def test_weights_that_are_not_on_this_machine_are_refused(model: Path) -> None:
    config = engine(model)
    config.model_config.model = "nobody/nothing"
    with pytest.raises(EngineError, match="cannot be fingerprinted"):
        model_identity(config)
