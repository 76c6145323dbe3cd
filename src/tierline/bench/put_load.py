"""Writers that PUT objects without a pause, in a process of their own: they take no interpreter from a measurement.

Run as ``python -m tierline.bench.put_load PORT WRITERS BYTES``; it writes until its standard input ends. Each writer
deletes its last object before it sends the next.
"""

import itertools
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from tierline.bench.limits import resident
from tierline.bench.plain_http import PlainHttp
from tierline.errors import TierlineError

_READY = "ready"
_STOP_SECONDS = 10.0


class PutLoad:
    """So many writers of objects of ``size`` bytes, for the length of the block.

    Raises
    ------
    TierlineError
        They cannot write.
    """

    def __init__(self, port: int, writers: int, size: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tierline.bench.put_load", str(port), str(writers), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != _READY:
            self._process.wait()
            raise TierlineError("the writers beside a measurement ended before they had written anything")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=_STOP_SECONDS)


class _Writer(threading.Thread):
    def __init__(self, port: int, number: int, payload: memoryview) -> None:
        super().__init__(daemon=True)
        self.has_written = threading.Event()
        self._http = PlainHttp(port)
        self._number = number
        self._payload = payload

    def run(self) -> None:
        for count in itertools.count():
            path = f"/v1/kv/bench/put-{self._number}-{count}"
            status, _ = self._http.request("PUT", path, self._payload, whole=True)
            if status != 200:
                return
            self.has_written.set()
            self._http.request("DELETE", path)


def _main(port: int, writers: int, size: int) -> None:
    payload = resident(size)
    threads = [_Writer(port, number, payload) for number in range(writers)]
    for thread in threads:
        thread.start()
    if all(thread.has_written.wait(30.0) for thread in threads):
        print(_READY, flush=True)  # noqa: T201  (read by the parent process)
    sys.stdin.read()


if __name__ == "__main__":
    _main(*(int(argument) for argument in sys.argv[1:]))
