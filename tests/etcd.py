"""A real etcd for tests, on a free port: the one of ``scripts/kube/build.sh``, or Debian's package ``etcd-server``."""

import json
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests import ports
from tests.kube import BUILT, find

START_SECONDS = 60.0


class Etcd:
    """One server, whose data outlive its process; skips the test where there is no etcd.

    Parameters
    ----------
    folder
        For its data, its log, and ``ca.pem`` where it speaks TLS.
    authority
        Signs its certificate, and the one that clients must show; without it there is no TLS.
    """

    def __init__(self, folder: Path, authority: trustme.CA | None = None) -> None:
        self.folder = folder
        self.port, self._peer_port = ports.free_ports(2)
        self.url = f"{'https' if authority else 'http'}://127.0.0.1:{self.port}"
        self._program = find("etcd") or shutil.which("etcd")
        if self._program is None:
            pytest.skip(f"no etcd in {BUILT} or the PATH: scripts/kube/build.sh, or apt-get install etcd-server")
        self._tls: list[str] = []
        self._context: ssl.SSLContext | None = None
        if authority is not None:
            for name in ("server", "client"):
                authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
            authority.cert_pem.write_to_path(folder / "ca.pem")
            own = folder / "server.pem"
            self._tls = [f"--cert-file={own}", f"--key-file={own}", f"--trusted-ca-file={folder / 'ca.pem'}"]
            self._tls.append("--client-cert-auth")
            self._context = ssl.create_default_context(cafile=folder / "ca.pem")
            self._context.load_cert_chain(folder / "client.pem")
        self.start()

    def start(self) -> None:
        """Serve; what was there is there again."""
        peers = f"http://127.0.0.1:{self._peer_port}"
        with (self.folder / "etcd.log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    str(self._program),
                    f"--data-dir={self.folder / 'data'}",
                    "--unsafe-no-fsync=true",
                    f"--listen-client-urls={self.url}",
                    f"--advertise-client-urls={self.url}",
                    f"--listen-peer-urls={peers}",
                    f"--initial-advertise-peer-urls={peers}",
                    f"--initial-cluster=default={peers}",
                    "--heartbeat-interval=20",  # of which the shortest lease is a multiple
                    "--election-timeout=200",
                    *self._tls,
                ],
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while not self._is_healthy():
            assert self._process.poll() is None, (self.folder / "etcd.log").read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.05)

    def kill(self) -> None:
        """End it without a word; :meth:`start` brings it back."""
        self._process.kill()
        self._process.wait()

    def ask(self, path: str, body: dict[str, Any], token: str = "") -> Any:
        """Return the answer of the JSON gateway."""
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode())
        if token:
            request.add_header("authorization", token)
        with urllib.request.urlopen(request, timeout=10, context=self._context) as answer:
            return json.load(answer)

    def delete(self, key: str) -> None:
        self.ask("kv/deleterange", {"key": base64(key)})

    def put(self, key: str, value: str) -> None:
        self.ask("kv/put", {"key": base64(key), "value": base64(value)})

    def compact(self) -> None:
        """Forget all history, as etcd does by itself where it is told to."""
        newest = self.ask("kv/range", {"key": "AA=="})["header"]["revision"]
        self.ask("kv/compaction", {"revision": newest, "physical": True})

    def require_users(self, user: str, password: str, prefix: str) -> None:
        """Ask everybody who he is, and let ``user`` have the keys under ``prefix``."""
        for name, secret in (("root", "root-of-tests"), (user, password)):
            self.ask("auth/user/add", {"name": name, "password": secret})
            self.ask("auth/role/add", {"name": name})
            self.ask("auth/user/grant", {"user": name, "role": name})
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        allowed = {"permType": "READWRITE", "key": base64(prefix), "range_end": base64(end)}
        self.ask("auth/role/grant", {"name": user, "perm": allowed})
        self.ask("auth/enable", {})

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5, context=self._context) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, ValueError):
            return False


def base64(text: str) -> str:
    return b64encode(text.encode()).decode()
