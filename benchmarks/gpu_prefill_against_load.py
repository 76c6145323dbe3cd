"""Computing a prompt's KV against loading it from a segment in /dev/shm, on one GPU, in the shapes of Llama-3.1-8B.

Run ``python benchmarks/gpu_prefill_against_load.py --output llama-8b-mine.yaml`` on a machine with CUDA (minutes; 55
GiB of GPU memory, 8 GiB of /dev/shm). Weights are random, for they change no time; attention is PyTorch's, which is
FlashAttention where the GPU has it. Each prompt is computed whole, then its KV is loaded from the segment as the vLLM
connector does: chunk by chunk, through a staging tensor, scattered over an engine's blocks, waited for and verified.
Beside it stand the copies alone, before and after ``cudaHostRegister``. Decoding steps are replayed CUDA graphs.

What is written are coefficients for ``tierline simulate run --coefficients``, with where they are from. ``--smoke``
does all of it in tiny shapes on a CPU: it shows that the program works, and its figures mean nothing.
"""
# ruff: noqa: T201

import argparse
import contextlib
import datetime as dt
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from tierline.client.copying import checksum
from tierline.connectors.vllm.copy import WORD_BYTES, DeviceCopier, page_words
from tierline.connectors.vllm.segment import PinnedRun
from tierline.prefix import CHUNK_TOKENS
from tierline.simulate.coefficients import (
    SCHEMA,
    Coefficients,
    DecodeCoefficients,
    Observations,
    PrefillCoefficients,
    check_place,
    write,
)
from tierline.simulate.fitting import DecodeSeen, PrefillSeen, fit_decode, fit_prefill
from tierline.stack.machine import SHARED_MEMORY

GIB = 2**30
KV_SHARE = 0.9
"""Of the GPU's memory that an engine uses for weights and KV, as vLLM's --gpu-memory-utilization has it."""

BLOCK_TOKENS = 16
"""Of a block of vLLM's on GPUs."""


@dataclass(frozen=True)
class Shapes:
    """A decoder of Llama's kind."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Of keys and values in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head * 2


@dataclass(frozen=True)
class Plan:
    """What is measured: prompts, those that are loaded too, sequences and contexts of decoding, and how often."""

    prompts: tuple[int, ...]
    loads: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    repeats: int


LLAMA_8B = Shapes("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128_256)
TINY = Shapes("tiny", 2, 64, 4, 2, 16, 128, 256)
FULL = Plan((1024, 2048, 4096, 8192, 16384, 32768, 65536), (8192, 65536), (1, 8, 32), (1024, 8192), 5)
SMOKE = Plan((256, 512, 1024), (512, 1024), (1, 2), (64, 256), 3)


class Device:
    """Where it runs, and how long things take there."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_gpu = kind == "cuda"

    @property
    def name(self) -> str:
        """Which one it is."""
        return torch.cuda.get_device_name() if self.is_gpu else "a CPU, in tiny shapes: no figure means anything"

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def median_s(self, work: Callable[[], object], repeats: int) -> float:
        """Return how long it takes: the median, after one that warms up."""
        work()
        took = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            took.append(time.perf_counter() - started)
        return statistics.median(took)

    def replayed(self, work: Callable[[], object]) -> Callable[[], object]:
        """Return the same as a graph, as engines decode: launching would take longer than computing."""
        if not self.is_gpu:
            return work
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


class Decoder:
    """Such a model with random weights; no layer's are another's, so that no cache of the GPU has them."""

    def __init__(self, shapes: Shapes, device: Device) -> None:
        self.shapes, self._device = shapes, device.kind
        queries, keys = shapes.heads * shapes.head, shapes.kv_heads * shapes.head
        self._layers = [
            (
                self._weights(queries + 2 * keys, shapes.width),
                self._weights(shapes.width, queries),
                self._weights(2 * shapes.inner, shapes.width),
                self._weights(shapes.width, shapes.inner),
            )
            for _ in range(shapes.layers)
        ]
        self._last = self._weights(shapes.vocabulary, shapes.width)
        self._norm = torch.ones(shapes.width, dtype=torch.bfloat16, device=device.kind)

    @property
    def weights_bytes(self) -> int:
        """Of all of it, the table of embeddings counted with the last layer's."""
        return sum(2 * each.numel() for layer in self._layers for each in layer) + 4 * self._last.numel()

    def prefill(self, tokens: int) -> torch.Tensor:
        """Compute a prompt; return what comes next."""
        hidden = torch.randn(1, tokens, self.shapes.width, dtype=torch.bfloat16, device=self._device)
        for layer in self._layers:
            hidden = self._layer(hidden, layer, None)
        return self._normal(hidden[:, -1]) @ self._last.T

    def caches(self, sequences: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return keys and values of so many sequences."""
        shape = (sequences, self.shapes.kv_heads, context, self.shapes.head)
        return [
            (
                torch.randn(shape, dtype=torch.bfloat16, device=self._device),
                torch.randn(shape, dtype=torch.bfloat16, device=self._device),
            )
            for _ in range(self.shapes.layers)
        ]

    def decode(self, hidden: torch.Tensor, caches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Compute one token of each sequence; return what comes next."""
        for layer, cache in zip(self._layers, caches, strict=True):
            hidden = self._layer(hidden, layer, cache)
        return self._normal(hidden[:, -1]) @ self._last.T

    def _layer(
        self,
        hidden: torch.Tensor,
        weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        shapes, (into, out_of, up, down) = self.shapes, weights
        sequences, tokens, _ = hidden.shape
        queries, keys = shapes.heads * shapes.head, shapes.kv_heads * shapes.head
        q, k, v = (self._normal(hidden) @ into.T).split((queries, keys, keys), dim=-1)
        q = q.view(sequences, tokens, shapes.heads, shapes.head).transpose(1, 2)
        k = k.view(sequences, tokens, shapes.kv_heads, shapes.head).transpose(1, 2)
        v = v.view(sequences, tokens, shapes.kv_heads, shapes.head).transpose(1, 2)
        if cache is not None:
            k, v = cache
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None, enable_gqa=True)
        hidden = hidden + attended.transpose(1, 2).reshape(sequences, tokens, queries) @ out_of.T
        gate, value = (self._normal(hidden) @ up.T).chunk(2, dim=-1)
        return hidden + (functional.silu(gate) * value) @ down.T

    def _normal(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, (self.shapes.width,), self._norm)

    def _weights(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=torch.bfloat16, device=self._device) * columns**-0.5


class Segment:
    """Shared memory as a node store has it: a file in /dev/shm, mapped, every page touched."""

    def __init__(self, size_bytes: int) -> None:
        path = SHARED_MEMORY / f"tierline-gpu-bench-{os.getpid()}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            path.unlink()  # the mapping keeps it
            os.posix_fallocate(descriptor, 0, size_bytes)
            self._mapping = mmap.mmap(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        self.bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self.bytes.fill_(1)

    def view(self, start: int, stop: int) -> memoryview:
        """Return a run of its bytes."""
        return memoryview(self._mapping)[start:stop]

    @contextlib.contextmanager
    def pinned(self, device: Device) -> Iterator[float]:
        """Have it registered with the driver meanwhile, as the connector does; yield how long that took."""
        if not device.is_gpu:
            yield 0.0
            return
        runtime = torch.cuda.cudart()
        started = time.perf_counter()
        run = PinnedRun(self.bytes.data_ptr(), self.bytes.numel(), runtime.cudaHostRegister, runtime.cudaHostUnregister)
        took_s = time.perf_counter() - started
        try:
            if run.pinned_bytes < self.bytes.numel():
                raise SystemExit(f"cudaHostRegister took {run.pinned_bytes} of {self.bytes.numel()} bytes")
            yield took_s
        finally:
            run.close()


def load_s(segment: Segment, shapes: Shapes, tokens: int, device: Device, repeats: int) -> float:
    """Return how long the connector takes to load the KV of so many tokens into an engine's blocks."""
    blocks, chunk_blocks = tokens // BLOCK_TOKENS, CHUNK_TOKENS // BLOCK_TOKENS
    shape = (blocks, 2, BLOCK_TOKENS, shapes.kv_heads, shapes.head)
    copier = DeviceCopier(
        [
            page_words(torch.empty(shape, dtype=torch.bfloat16, device=device.kind), blocks, f"{layer}")
            for layer in range(shapes.layers)
        ],
        chunk_blocks,
    )
    chunks = segment.bytes.view(torch.int64).split(copier.chunk_bytes // WORD_BYTES)
    free = torch.randperm(blocks).tolist()  # the free blocks of an engine lie anywhere

    def load() -> None:
        after = copier.mark()
        for number in range(tokens // CHUNK_TOKENS):
            copier.load([chunks[number]], free[number * chunk_blocks : (number + 1) * chunk_blocks], after)
            checksum([segment.view(number * copier.chunk_bytes, (number + 1) * copier.chunk_bytes)])

    return device.median_s(load, repeats)


def copy_s(segment: Segment, shapes: Shapes, tokens: int, device: Device, repeats: int) -> float:
    """Return how long the copies alone take, one after the other, into one run of memory."""
    size = shapes.kv_bytes_per_token * tokens
    piece = shapes.kv_bytes_per_token * CHUNK_TOKENS
    target = torch.empty(size, dtype=torch.uint8, device=device.kind)

    def copy() -> None:
        for start in range(0, size, piece):
            target[start : start + piece].copy_(segment.bytes[start : start + piece], non_blocking=True)

    return device.median_s(copy, repeats)


@torch.inference_mode()
def measure(shapes: Shapes, plan: Plan, device: Device) -> Coefficients:
    """Measure all of it, print it, and return the coefficients."""
    decoder = Decoder(shapes, device)
    prefills = []
    for tokens in plan.prompts:
        took_s = device.median_s(lambda tokens=tokens: decoder.prefill(tokens), plan.repeats)
        prefills.append(PrefillSeen(tokens, 0, took_s))
        print(f"prefill {tokens:>6} tokens: {1000 * took_s:10.2f} ms, {tokens / took_s:10,.0f} tokens/s", flush=True)
    _measure_loads(shapes, plan, device, {seen.tokens: seen.seconds for seen in prefills})
    decodes = []
    for sequences in plan.batches:
        for context in plan.contexts:
            caches = decoder.caches(sequences, context)
            hidden = torch.randn(sequences, 1, shapes.width, dtype=torch.bfloat16, device=device.kind)
            step = device.replayed(lambda hidden=hidden, caches=caches: decoder.decode(hidden, caches))
            decodes.append(DecodeSeen(sequences, sequences * context, device.median_s(step, 4 * plan.repeats)))
            print(f"decode {sequences:>3} × {context:>6} tokens: {1000 * decodes[-1].seconds:8.3f} ms", flush=True)
            del step, caches, hidden
    room = torch.cuda.get_device_properties(0).total_memory if device.is_gpu else GIB
    return Coefficients(
        schema=SCHEMA,
        model=f"{shapes.name}, random weights, bf16",
        hardware=device.name,
        engine=f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}",
        source=(
            f"benchmarks/gpu_prefill_against_load.py: medians of {plan.repeats}, prompts computed whole, decoding as "
            "CUDA graphs; no scheduler, sampling or HTTP is in these times"
        ),
        date=dt.datetime.now(dt.UTC).date(),
        kv_bytes_per_token=shapes.kv_bytes_per_token,
        kv_tokens=max(1024, int(KV_SHARE * room - decoder.weights_bytes) // shapes.kv_bytes_per_token),
        prefill=PrefillCoefficients(**fit_prefill(prefills)._asdict()),
        decode=DecodeCoefficients(**fit_decode(decodes)._asdict()),
        observations=Observations(prefill=tuple(prefills), decode=tuple(decodes)),
    )


def _measure_loads(shapes: Shapes, plan: Plan, device: Device, prefill_s: dict[int, float]) -> None:
    segment = Segment(shapes.kv_bytes_per_token * max(plan.loads))
    pageable = {tokens: copy_s(segment, shapes, tokens, device, plan.repeats) for tokens in plan.loads}
    with segment.pinned(device) as registered_s:
        print(f"cudaHostRegister of {segment.bytes.numel() / GIB:.2f} GiB: {registered_s:.2f} s", flush=True)
        for tokens in plan.loads:
            size = shapes.kv_bytes_per_token * tokens
            took_s = load_s(segment, shapes, tokens, device, plan.repeats)
            print(
                f"load {tokens:>6} tokens, {size / GIB:.2f} GiB, as the connector does: {_speed(size, took_s)} "
                f"(--l1-bandwidth); computing takes {prefill_s[tokens] / took_s:.1f} times as long",
                flush=True,
            )
            alone_s = copy_s(segment, shapes, tokens, device, plan.repeats)
            print(
                f"copy {tokens:>6} tokens, nothing else: pinned {_speed(size, alone_s)}; "
                f"pageable {_speed(size, pageable[tokens])}",
                flush=True,
            )


def _speed(size_bytes: int, seconds: float) -> str:
    return f"{1000 * seconds:8.2f} ms, {size_bytes / seconds / 1e9:6.1f} GB/s"


def main() -> None:
    """Measure as the command line says."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, required=True, metavar="FILE", help="coefficients, .yaml or .json")
    options.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU, to see that it works")
    given = options.parse_args()
    if not given.smoke and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here; --smoke runs tiny shapes on a CPU")
    check_place("--output", given.output)
    torch.manual_seed(0)
    device = Device("cpu" if given.smoke else "cuda")
    made = measure(TINY if given.smoke else LLAMA_8B, SMOKE if given.smoke else FULL, device)
    write(made, given.output)
    print(f"{given.output}: {made.accuracy}")


if __name__ == "__main__":
    main()
