"""Fingerprints of weights and adapters: of their contents, never of a name or a path.

Reading 140 GB of weights at every start would take minutes, so each tensor is sampled at its start, middle and end.
Training moves (nearly) every element of the tensors that it touches, so two checkpoints with equal headers and equal
samples in every tensor are the same checkpoint. Embeddings are the exception: training touches only the rows of tokens
that it saw (new special tokens, for example), so they are read whole. Files without a safetensors header are sampled
evenly.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from blake3 import blake3

from tierline.errors import EngineError

SAMPLE_BYTES = 4096
EMBEDDING_NAMES = ("embed", "lm_head", "wte", "wpe")
"""Parts of the names of tensors that have a row for each token or position."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
ADAPTER_FILES = ("adapter_config.json", "new_embeddings.safetensors")
_HEADER_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER_BYTES = 100_000_000
_EVEN_SAMPLES = 512
_PIECE_BYTES = 16 * 1024 * 1024


class _TensorHeader(msgspec.Struct):
    data_offsets: tuple[int, int] | None = None


def weights_fingerprint(model: Path) -> str:
    """Return 64 hex digits that name the weights of a model.

    Parameters
    ----------
    model
        A folder with weight files, or one weight file.

    Raises
    ------
    EngineError
        There are no weight files.
    """
    files = [model] if model.is_file() else [path for path in model.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    if not files:
        raise EngineError(
            f"{model} holds no weight files ({', '.join(WEIGHT_SUFFIXES)}), so its KV cannot be told from another "
            "model's; give vLLM a local model folder or a repository that is in the local Hugging Face cache"
        )
    folder = model.parent if model.is_file() else model
    return _of_files(files, (folder / name for name in QUANTISATION_FILES))


def adapter_fingerprint(adapter: Path) -> str:
    """Return 64 hex digits that name the contents of a LoRA adapter's folder.

    Raises
    ------
    EngineError
        The folder holds no adapter weights.
    """
    if not adapter.is_dir():
        raise EngineError(f"the adapter {adapter} is not a local folder, so its contents cannot be fingerprinted")
    files = [path for path in adapter.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    if not files:
        raise EngineError(f"the adapter folder {adapter} holds no weight files")
    return _of_files(files, (adapter / name for name in ADAPTER_FILES))


class AdapterIdentities:
    """Remembers which contents an adapter id had when it was first used.

    vLLM keeps an adapter in memory and may read it from disk again; once its files change under the same id, nobody
    outside can say which version computed a block. Invariant: an id whose files changed is unknown from then on.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, str]] = {}

    def fingerprint(self, adapter_id: int, folder: Path) -> str | None:
        """Return the adapter's fingerprint, or ``None`` where its contents cannot be known."""
        try:
            state = _file_state(folder)
            if adapter_id not in self._known:
                self._known[adapter_id] = (state, adapter_fingerprint(folder))
        except (OSError, EngineError):
            return None
        first_state, fingerprint = self._known[adapter_id]
        if state != first_state:
            self._known[adapter_id] = (None, "")
            return None
        return fingerprint


def _file_state(folder: Path) -> list[tuple[str, int, int, int]]:
    return sorted(
        (str(entry), status.st_ino, status.st_size, status.st_mtime_ns)
        for entry in folder.iterdir()
        if (status := entry.stat())
    )


def _of_files(weights: Iterable[Path], side_files: Iterable[Path]) -> str:
    # Digests are sorted, so that what a file is called does not matter.
    digests = sorted(_weight_file_digest(path) for path in weights)
    digests += [blake3(path.read_bytes()).digest() for path in side_files if path.is_file()]
    return blake3(b"".join(digests)).hexdigest()


def _weight_file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        hasher = blake3(_HEADER_LENGTH.pack(size))
        runs: Iterable[tuple[int, int]]
        if path.suffix == ".safetensors":
            header = _safetensors_header(file, path)
            hasher.update(header)
            runs = _tensor_samples(header, path)
        else:
            runs = _even_samples(size)
        for offset, length in runs:
            hasher.update(os.pread(file.fileno(), length, offset))
    return hasher.digest()


def _safetensors_header(file: BinaryIO, path: Path) -> bytes:
    length = file.read(_HEADER_LENGTH.size)
    header_bytes = _HEADER_LENGTH.unpack(length)[0] if len(length) == _HEADER_LENGTH.size else 0
    header = file.read(header_bytes) if 0 < header_bytes <= _LONGEST_HEADER_BYTES else b""
    if not header or len(header) < header_bytes:
        raise EngineError(f"{path} is not a whole safetensors file: its header claims {header_bytes} bytes")
    return header


def _tensor_samples(header: bytes, path: Path) -> Iterator[tuple[int, int]]:
    data_start = _HEADER_LENGTH.size + len(header)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, _TensorHeader])
    except msgspec.DecodeError as error:
        raise EngineError(f"{path} is not a safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.data_offsets is None:  # the entry with the file's own metadata
            continue
        start, stop = tensor.data_offsets
        if any(part in name for part in EMBEDDING_NAMES):
            for offset in range(start, stop, _PIECE_BYTES):
                yield data_start + offset, min(_PIECE_BYTES, stop - offset)
            continue
        length = min(SAMPLE_BYTES, stop - start)
        for offset in sorted({start, (start + stop - length) // 2, stop - length}):
            yield data_start + offset, length


def _even_samples(size: int) -> Iterator[tuple[int, int]]:
    if size <= _EVEN_SAMPLES * SAMPLE_BYTES:
        yield 0, size
        return
    for index in range(_EVEN_SAMPLES):
        yield index * (size - SAMPLE_BYTES) // (_EVEN_SAMPLES - 1), SAMPLE_BYTES
