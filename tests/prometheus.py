"""A real Prometheus for tests: Debian's package ``prometheus``, with ``promtool``; without it, tests are skipped."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tests.ports import free_port
from tests.provided import PROMETHEUS, lacks

READY_WITHIN_S = 120.0


def program(name: str) -> str:
    """Return where ``prometheus`` or ``promtool`` is; skips the test where it is not."""
    found = shutil.which(name)
    if found is None:
        lacks(PROMETHEUS, f"no {name} in the PATH: apt-get install prometheus")
    return found


class Prometheus:
    """A server that scrapes pages every second."""

    def __init__(self, folder: Path, pages: Sequence[str], rules: Path) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        targets = sorted({url.removeprefix("http://").removesuffix("/metrics") for url in pages})
        config = folder / "prometheus.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(rules)],
                    "scrape_configs": [{"job_name": "tierline", "static_configs": [{"targets": targets}]}],
                }
            )
        )
        self._log = folder / "prometheus.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"),
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[Any]:
        """Return the series of an expression as it is now."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def until_scraped(self) -> None:
        """Until every page was read well."""
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                health = {target["scrapeUrl"]: target["health"] for target in self.get("targets")["activeTargets"]}
                if health and set(health.values()) == {"up"}:
                    return
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.2)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def scraping(folder: Path, pages: Sequence[str], rules: Path) -> Iterator[Prometheus]:
    """Run a Prometheus for the time of a ``with`` block, from when it has read every page."""
    server = Prometheus(folder, pages, rules)
    try:
        server.until_scraped()
        yield server
    finally:
        server.close()
