"""A publisher of KV events that speaks as vLLM's does, in either form of its replay, and loses what it is told to."""

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq


class Publisher:
    """PUB and ROUTER sockets on two ``ipc`` paths; each life counts from 0."""

    def __init__(self, folder: Path, *, has_topic: bool = True, answers: bool = True) -> None:
        self.events, self.replay = f"ipc://{folder}/events", f"ipc://{folder}/replay"
        self.address = f"{self.events}?replay={self.replay}"
        self.sent: list[bytes] = []
        self._has_topic = has_topic
        self._answers = answers
        self._context = zmq.Context()
        self._live = self._context.socket(zmq.PUB)
        self._live.setsockopt(zmq.LINGER, 0)
        self._live.bind(self.events)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve_replays)
        self._thread.start()

    def publish(self, *events: Any, is_lost: bool = False) -> None:
        payload = msgspec.msgpack.encode([time.time(), events])
        number = len(self.sent)
        self.sent.append(payload)
        if not is_lost:
            self._live.send_multipart([b"topic", number.to_bytes(8, "big"), payload])

    def send_raw(self, *frames: bytes) -> None:
        self._live.send_multipart(frames)

    def _serve_replays(self) -> None:
        with self._context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 0)
            router.bind(self.replay)
            while not self._stopped.is_set():
                if not router.poll(20):
                    continue
                client, empty, start = router.recv_multipart()
                if not self._answers:
                    continue
                topic = [b"topic"] if self._has_topic else []
                for number in range(int.from_bytes(start, "big"), len(self.sent)):
                    frames = [*topic, number.to_bytes(8, "big"), self.sent[number]]
                    router.send_multipart([client, empty, *frames])
                router.send_multipart([client, empty, *(b"" for _ in topic), b"\xff" * 8, b""])

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._live.close()
        self._context.term()
