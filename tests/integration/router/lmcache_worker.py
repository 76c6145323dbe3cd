"""A program: LMCache's own worker, sender and token database, driven line by line; answers each with a line of JSON.

Its engine is what these need of one: a memory backend's keys, and whether it is frozen.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from lmcache.v1 import token_database
from lmcache.v1.cache_controller.message import OpType
from lmcache.v1.cache_controller.worker import LMCacheWorker
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.batched_message_sender import BatchedMessageSender


def names(ids: list[int], algorithm: str) -> list[Any]:
    """The first number and the chunks of a prompt, as the real package has them."""
    config = LMCacheEngineConfig.from_defaults(pre_caching_hash_algorithm=algorithm)
    database = token_database.ChunkedTokenDatabase(config)
    return [token_database.NONE_HASH, [each for _, _, each in database.process_tokens(ids, make_key=False)]]


class Engine:
    """Workers of one engine."""

    def __init__(self, pull: str, reply: str, port: int, instance: str) -> None:
        self.frozen: list[bool] = []
        self.keys: list[int] = []
        self._config = LMCacheEngineConfig.from_defaults(
            enable_controller=True,
            lmcache_instance_id=instance,
            controller_pull_url=pull,
            controller_reply_url=reply,
            lmcache_worker_ports=[port],
            lmcache_worker_heartbeat_time=1,
            lmcache_worker_heartbeat_delay_time=0,
            extra_config={
                "full_sync_startup_delay_s": 0.0,
                "full_sync_batch_size": 2,
                "full_sync_status_poll_interval_s": 0.1,
            },
        )
        import torch

        self._metadata = LMCacheMetadata(
            model_name="m",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(1, 2, 256, 1, 8),
        )
        backend = _Backend(self)
        engine = SimpleNamespace(storage_manager=SimpleNamespace(local_cpu_backend=backend), freeze=self.frozen.append)
        self.worker = LMCacheWorker(self._config, self._metadata, engine)
        self._senders = {name: self._sender(name) for name in ("LocalCPUBackend", "LocalDiskBackend")}

    def _sender(self, location: str) -> BatchedMessageSender:
        return BatchedMessageSender(self._metadata, self._config, location, self.worker)

    def change(self, op_type: OpType, location: str, keys: list[int]) -> None:
        for key in keys:
            self._senders[location].add_kv_op(op_type, key)
        if location == "LocalCPUBackend":
            kept = [key for key in self.keys if key not in keys]
            self.keys = kept + (keys if op_type is OpType.ADMIT else [])
        self._senders[location].flush()

    def lose_one(self, location: str) -> None:
        """A message that never arrives."""
        self._senders[location]._get_next_sequence_number()


class _Backend:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __str__(self) -> str:
        return "LocalCPUBackend"

    def get_keys(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(chunk_hash=key) for key in self._engine.keys]


def main() -> None:
    pull, reply, port, instance = sys.argv[1:]
    engine: Engine | None = None
    for line in sys.stdin:
        command, *rest = json.loads(line)
        answer: Any = None
        if command == "names":
            ids, algorithm = rest
            answer = names(ids, algorithm)
        elif command == "unseed":
            del os.environ["PYTHONHASHSEED"]
        elif command == "start":
            engine = Engine(pull, reply, int(port), instance)
        else:
            assert engine is not None
            if command in ("admit", "evict"):
                engine.change(OpType(command), *rest)
            elif command == "lose":
                engine.lose_one(*rest)
            elif command == "frozen":
                answer = engine.frozen
            elif command == "leave":
                engine.worker.deregister()
        sys.stdout.write(f"={json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
