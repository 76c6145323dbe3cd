"""What the end-to-end tests start: a real vLLM engine, a real node store, and a slow path between them."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs

from tierline.client import NodeClient
from tierline.connectors.vllm import kv_transfer_config
from tierline.errors import TierlineError

START_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a replica generated for one prompt."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int


class Replica:
    """One vLLM engine in processes of its own, with the recording connector.

    Parameters
    ----------
    is_async
        Force asynchronous scheduling, which the CPU back end switches off.
    hash_seed
        ``PYTHONHASHSEED`` of the engine; ``None`` leaves it unset.
    """

    def __init__(self, model: Path, node_socket: Path, record: Path, *, is_async: bool, hash_seed: str | None) -> None:
        transfer = kv_transfer_config(node_socket) | {
            "kv_connector": "RecordingConnector",
            "kv_connector_module_path": "tests.e2e.recording_connector",
            # A machine that runs tests may be too busy for the usual 20 ms.
            "kv_connector_extra_config": {"tierline.socket": str(node_socket), "tierline.lookup_budget_ms": 500},
        }
        environment = {
            "TIERLINE_TEST_RECORD": str(record),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "WARNING",
            # Two threads that wait for each other take sixteen times as long where a third program runs.
            "OMP_NUM_THREADS": "1",
            # The first logprobs otherwise compile an operator for 13 to 31 s.
            "TORCHDYNAMO_DISABLE": "1",
        }
        if hash_seed is not None:
            environment["PYTHONHASHSEED"] = hash_seed
        self.is_async = is_async
        self._labels = {"model_name": str(model), "engine": "0"}
        with patch.dict(os.environ, environment), _forced_scheduling(is_async):
            self._llm = LLM(
                str(model),
                dtype="float32",
                enforce_eager=True,
                max_model_len=1024,
                max_num_batched_tokens=1024,
                disable_log_stats=False,
                kv_transfer_config=transfer,
            )

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int = 64, cache_salt: str | None = None) -> list[Answer]:
        """Generate greedily, all prompts in one batch."""
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=0)
        inputs: list[dict[str, Any]] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        for salted in inputs if cache_salt is not None else ():
            salted["cache_salt"] = cache_salt
        return [
            Answer(
                tuple(output.outputs[0].token_ids),
                tuple(next(iter(position.values())).logprob for position in output.outputs[0].logprobs),
                output.num_cached_tokens,
            )
            for output in self._llm.generate(inputs, sampling, use_tqdm=False)
        ]

    def forget(self) -> None:
        """Empty the engine's own prefix cache."""
        assert self._llm.reset_prefix_cache()

    def counter(self, name: str) -> float:
        """Return one of the connector's counters as vLLM exports it."""
        return REGISTRY.get_sample_value(f"vllm:tierline_{name}_total", self._labels) or 0.0

    def cached_tokens(self, source: str) -> float:
        """Return vLLM's count of prompt tokens that came from a source: ``device`` or ``host``."""
        labels = self._labels | {"source": source}
        return REGISTRY.get_sample_value("vllm:prompt_tokens_cached_by_source_total", labels) or 0.0

    def close(self) -> None:
        """Stop the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()


class NodeStore:
    """A `tierline node` process; started again, it adopts its segment."""

    def __init__(self, folder: Path, name: str, capacity: str) -> None:
        self.socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        self.segment = Path("/dev/shm") / f"tierline-test-{os.getpid()}-{name}"
        self._capacity = capacity
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [
            sys.executable,
            "-c",
            "from tierline.cli.main import main; main()",
            "node",
            "--port",
            str(free_port()),
        ]
        command += ["--shared-memory-name", self.segment.name, "--capacity", self._capacity]
        command += ["--socket", str(self.socket)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, f"the node store answers; its log: {self._log}")

    def kill(self) -> None:
        """``kill -9``, without a chance to say goodbye; nothing where it is dead already."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stats(self) -> dict[str, Any]:
        """Return the store's own statistics."""
        with NodeClient(self.socket) as client:
            return client.stats()

    def flip_bits(self) -> None:
        """Flip a bit in every 4 KiB of the segment, behind the node store's back."""
        with self.segment.open("r+b") as segment:
            size = os.fstat(segment.fileno()).st_size
            for offset in range(0, size, 4096):
                (byte,) = os.pread(segment.fileno(), 1, offset)
                os.pwrite(segment.fileno(), bytes([byte ^ 1]), offset)

    def remove(self) -> None:
        """Stop it and remove what it left."""
        self.kill()
        for path in self.segment.parent.glob(self.segment.name + "*"):
            path.unlink()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(TierlineError):
            NodeClient(self.socket).close()
            return True
        return False


class SlowPath:
    """A UNIX socket in front of a node store's that holds every byte of every answer back for a while."""

    def __init__(self, path: Path, target: Path, delay_s: float) -> None:
        self._target = target
        self._delay_s = delay_s
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                node = socket.socket(socket.AF_UNIX)
                node.connect(str(self._target))
                self._open += [client, node]
                threading.Thread(target=self._pass_on, args=(client, node, 0.0), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(node, client, self._delay_s), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(source, 65536, 4)
                if not data:
                    break
                time.sleep(delay_s)
                socket.send_fds(target, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """Return a TCP port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Wait until a condition holds; fail with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def _forced_scheduling(is_async: bool) -> Iterator[None]:
    """Set asynchronous scheduling after the CPU platform has switched it off; vLLM itself stays as it is."""
    create = EngineArgs.create_engine_config

    def create_forced(arguments: EngineArgs, *args: Any, **options: Any) -> Any:
        config = create(arguments, *args, **options)
        config.scheduler_config.async_scheduling = is_async
        return config

    with patch.object(EngineArgs, "create_engine_config", create_forced):
        yield
