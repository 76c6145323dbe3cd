"""Fingerprints follow contents: not names, not paths, not sizes."""

import json
import struct
from pathlib import Path

import pytest

from tierline.connectors.vllm.identity import SAMPLE_BYTES, AdapterIdentities, adapter_fingerprint, weights_fingerprint
from tierline.errors import EngineError

TENSOR_BYTES = 10 * SAMPLE_BYTES


def write_weights(
    folder: Path, fill: bytes = b"\1\2", name: str = "model.safetensors", changed: int = -1, second: str = "b"
) -> Path:
    """Write two tensors; ``changed`` is the offset in the second one of a byte that differs."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "U8", "shape": [TENSOR_BYTES], "data_offsets": [0, TENSOR_BYTES]},
            second: {"dtype": "U8", "shape": [TENSOR_BYTES], "data_offsets": [TENSOR_BYTES, 2 * TENSOR_BYTES]},
        }
    ).encode()
    content = bytearray(fill * TENSOR_BYTES)
    if changed >= 0:
        content[TENSOR_BYTES + changed] ^= 255
    (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + content)
    return folder


def test_equal_weights_have_one_fingerprint_under_any_path_and_file_name(tmp_path: Path) -> None:
    here = write_weights(tmp_path / "here")
    there = write_weights(tmp_path / "there", name="weights-00001.safetensors")
    assert weights_fingerprint(here) == weights_fingerprint(there)


@pytest.mark.parametrize("changed", [0, TENSOR_BYTES // 2, TENSOR_BYTES - 1])
def test_weights_that_differ_at_a_sampled_place_have_another_fingerprint(tmp_path: Path, changed: int) -> None:
    original = write_weights(tmp_path / "original")
    tuned = write_weights(tmp_path / "tuned", changed=changed)
    assert weights_fingerprint(original) != weights_fingerprint(tuned)


@pytest.mark.parametrize("second", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_changed_row_of_an_embedding_is_another_model(tmp_path: Path, second: str) -> None:
    between_samples = SAMPLE_BYTES + 7
    original = write_weights(tmp_path / "original", second=second)
    tuned = write_weights(tmp_path / "tuned", second=second, changed=between_samples)
    assert weights_fingerprint(original) != weights_fingerprint(tuned)


@pytest.mark.parametrize("content", [b"", b"\1\2", struct.pack("<Q", 10**18), struct.pack("<Q", 3) + b"{}x"])
def test_a_file_that_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        weights_fingerprint(tmp_path)


def test_weights_swapped_under_one_path_have_another_fingerprint(tmp_path: Path) -> None:
    before = weights_fingerprint(write_weights(tmp_path / "model"))
    after = weights_fingerprint(write_weights(tmp_path / "model", fill=b"\3\4"))
    assert before != after


def test_a_quantisation_file_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "model")
    before = weights_fingerprint(folder)
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    assert weights_fingerprint(folder) != before


def test_files_without_a_header_are_sampled_too(tmp_path: Path) -> None:
    for name, fill in (("a", b"\0"), ("b", b"\1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pytorch_model.bin").write_bytes(fill * 3_000_000)
    assert weights_fingerprint(tmp_path / "a") != weights_fingerprint(tmp_path / "b")


def test_a_single_weight_file_has_the_fingerprint_of_its_folder(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "model")
    assert weights_fingerprint(folder / "model.safetensors") == weights_fingerprint(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="holds no weight files"):
        weights_fingerprint(tmp_path)


def test_adapters_with_other_contents_have_other_fingerprints(tmp_path: Path) -> None:
    one = write_weights(tmp_path / "one", name="adapter_model.safetensors")
    other = write_weights(tmp_path / "other", fill=b"\5\6", name="adapter_model.safetensors")
    assert adapter_fingerprint(one) != adapter_fingerprint(other)


def test_an_adapter_keeps_its_fingerprint_while_its_files_stay(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "adapter", name="adapter_model.safetensors")
    adapters = AdapterIdentities()
    assert adapters.fingerprint(1, folder) == adapters.fingerprint(1, folder) == adapter_fingerprint(folder)


def test_an_adapter_whose_files_change_under_its_id_is_unknown_from_then_on(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "adapter", name="adapter_model.safetensors")
    adapters = AdapterIdentities()
    adapters.fingerprint(1, folder)
    write_weights(folder, fill=b"\7\7", name="adapter_model.safetensors")
    assert adapters.fingerprint(1, folder) is None
    assert adapters.fingerprint(1, folder) is None
    assert adapters.fingerprint(2, folder) == adapter_fingerprint(folder)


def test_an_adapter_that_is_not_a_local_folder_is_unknown(tmp_path: Path) -> None:
    assert AdapterIdentities().fingerprint(1, tmp_path / "nowhere") is None
