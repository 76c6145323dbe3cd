"""Fetching as a program: an init container's, so it says how far it is, ends when it is told to, and can go on."""

import asyncio
import os
import signal
import time

from tierline import logs
from tierline.configuration import format_byte_size
from tierline.fetch.addresses import parse_source
from tierline.fetch.config import FetchConfig
from tierline.fetch.fetching import Progress, fetch
from tierline.fetch.sources import open_source

log = logs.get(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a program that a signal ended, as shells have it."""


async def fetched(config: FetchConfig, hf_token: str = "") -> Progress:
    """Fetch what ``config`` says, and return how it went; raises as :func:`~tierline.fetch.fetching.fetch`."""
    source = open_source(
        parse_source(config.source),
        s3_endpoint=config.s3_endpoint,
        s3_region=config.s3_region,
        hf_endpoint=config.hf_endpoint,
        hf_token=hf_token,
        timeout_s=config.timeout_s,
    )
    progress = Progress()
    began = time.monotonic()
    try:
        await fetch(source, config, progress)
    finally:
        await source.close()
    seconds = time.monotonic() - began
    log.info(
        "model is there",
        folder=str(config.folder),
        files=progress.files,
        kept=progress.kept_files,
        verified=progress.verified_files,
        removed=progress.removed or None,
        size=format_byte_size(progress.total_bytes),
        fetched=format_byte_size(progress.fetched_bytes),
        seconds=round(seconds, 3),
    )
    return progress


def run(config: FetchConfig) -> None:
    """Fetch as a program; SIGTERM ends it, as the first process of a container too, which no signal ends by itself."""
    logs.configure(config.log_level, json=config.log_format == "json")
    if not asyncio.run(_until_done(config, os.environ.get("HF_TOKEN", ""))):
        raise SystemExit(TERMINATED)


async def _until_done(config: FetchConfig, hf_token: str) -> bool:
    """Return whether it came to its end, and was not told to end before."""
    fetching = asyncio.ensure_future(fetched(config, hf_token))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, fetching.cancel)
    try:
        await fetching
    except asyncio.CancelledError:
        log.info("told to end; what is there stays for the next time")
        return False
    return True
