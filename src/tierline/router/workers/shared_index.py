"""The one process of a router whose workers share the exact index of ``kvaware``: a ``tierline controller`` of its own.

It listens on a socket that only this user can open, and to the endpoints that the workers tell it of. While it is away
the workers go by what ``prefixaware`` guesses.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from tierline import logs
from tierline.lifelines import end_with_parent
from tierline.router.config import RouterConfig

log = logs.get(__name__)

READY_WITHIN_S = 60.0
RESTART_AFTER_S = 1.0
STOP_WITHIN_S = 5.0
METRICS_WITHIN_S = 1.0
_LOOK_SECONDS = 0.02


class SharedIndex:
    """The process.

    Parameters
    ----------
    config
        The router's.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        # In no folder of its own: the process removes its sockets however this one ends, and could not remove that.
        self._socket = Path(tempfile.gettempdir()) / f"tierline-router-{secrets.token_hex(8)}"
        self._http = self._socket.with_suffix(".http")
        self.address = f"unix:{self._socket}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> int | None:
        """Start it; return ``None`` when it can be asked, else its exit status: it has said why."""
        self._process = process = await self._spawn()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WITHIN_S):
                while not self._socket.exists() and process.returncode is None:  # noqa: ASYNC110  (another program's)
                    await asyncio.sleep(_LOOK_SECONDS)
        if self._socket.exists():
            return None
        return process.returncode or 1

    async def keep(self) -> None:
        """Start it again whenever it ends."""
        while True:
            assert self._process is not None
            code = await self._process.wait()
            log.error("the process with the index ended and is started again", status=code, in_s=RESTART_AFTER_S)
            await asyncio.sleep(RESTART_AFTER_S)
            self._remove_sockets()
            try:
                self._process = await self._spawn()
            except OSError as error:
                log.error("the process with the index cannot be started", why=error.strerror or str(error))

    async def stop(self) -> None:
        """End it."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            if process.returncode is None:
                process.kill()
                await process.wait()
        self._remove_sockets()

    async def metrics(self) -> bytes:
        """Return what it counts, as its page for Prometheus; nothing while it is away."""
        try:
            async with asyncio.timeout(METRICS_WITHIN_S):
                reader, writer = await asyncio.open_unix_connection(str(self._http))
                try:
                    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                    head, _, page = (await reader.read()).partition(b"\r\n\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            log.debug("the process with the index does not say what it counts", why=str(error) or "in time")
            return b""
        return page if b" 200 " in head.partition(b"\r\n")[0] else b""

    def _remove_sockets(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._http.unlink(missing_ok=True)

    async def _spawn(self) -> asyncio.subprocess.Process:
        config = self._config
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "tierline", "controller", "--takes-endpoints", "--listen", self.address),
            *("--http", f"unix:{self._http}"),
            *("--kv-index-bytes", str(config.kv_index_bytes)),
            *("--log-level", config.log_level, "--log-format", config.log_format),
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
