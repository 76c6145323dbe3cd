"""The operator as a program that is killed: whatever it had written last, the next one completes what it began."""

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import (
    RESOURCES,
    SECRETS,
    Kinds,
    eventually,
    install,
    limited,
    names_at,
    resource,
    state,
)
from tests.kube import Api, Cluster, running_cluster, running_controllers
from tests.reading_gate import Asked, ReadingGate, reading_gate

from tierline.operator.names import FIELD_MANAGER, MANAGED_BY, OWNER_UID

pytestmark = pytest.mark.timeout(600)

DEATHS_OF_CREATION, DEATHS_OF_DELETION = 4, 3
QUIET_SECONDS = 3.0
WITHIN_SECONDS = 240.0
DRIVERS = "/apis/storage.k8s.io/v1/csidrivers"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With a driver, so that something is outside all namespaces, and controllers, so that what is owned goes."""

    async def furnish(cluster: Cluster) -> None:
        async with cluster.connected() as api:
            await install(api)
            await api.ask("POST", DRIVERS, {"metadata": {"name": "s3.csi.aws.com"}, "spec": {"attachRequired": False}})

    with running_cluster(tmp_path_factory.mktemp("kube")) as cluster:
        asyncio.run(furnish(cluster))
        with running_controllers(cluster):
            yield cluster


class Relay:
    """Operators before one gate, of which one leads and another waits; who leads is killed when it is told to be.

    Parameters
    ----------
    command
        Of each.
    gate
        Sees what they write.
    """

    def __init__(self, command: list[str], gate: ReadingGate) -> None:
        self._dead: list[asyncio.subprocess.Process] = []
        self._command = command
        self._gate = gate
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._leader = 0
        self._written: Counter[int] = Counter()
        """By process, without the dead."""
        self._fatal = 0
        self._died = asyncio.Event()
        gate.answered = self._saw

    async def add(self) -> None:
        """Have one more, in line behind the others."""
        process = await asyncio.create_subprocess_exec(*self._command)
        self._running[process.pid] = process

    async def close(self) -> None:
        for process in self._running.values():
            process.kill()
        for process in (*self._running.values(), *self._dead):
            await process.wait()

    async def kill_at(self, write: int, over: Coroutine[Any, Any, Any]) -> bool:
        """Have who leads die at a write that the API has done already; ``False``: what is waited for was so before."""
        self._died.clear()
        self._written.clear()
        self._fatal = write
        await self.add()  # who is to take over has read his modules by the time that he is needed
        ends = [asyncio.create_task(over), asyncio.create_task(self._died.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=WITHIN_SECONDS)
        for end in ends:
            end.cancel()
        self._fatal = 0
        return self._died.is_set()

    async def quiet(self) -> None:
        """Wait until who leads has written, and writes no more."""
        async with asyncio.timeout(WITHIN_SECONDS):
            before = -1
            while before != len(self._gate.writes) or not self._written[self._leader]:
                before = len(self._gate.writes)
                await asyncio.sleep(QUIET_SECONDS)

    def _saw(self, asked: Asked) -> None:
        if "/leases" in asked.path and asked.method != "GET" and asked.status < 300:
            identity = json.loads(asked.body)["spec"]["holderIdentity"]
            self._leader = int(identity.split("-")[-2])
        if not asked.is_write or self._leader not in self._running:
            return
        self._written[self._leader] += 1
        if self._fatal and self._written[self._leader] >= self._fatal:
            process = self._running.pop(self._leader)
            process.send_signal(signal.SIGKILL)
            self._dead.append(process)
            self._died.set()


@contextlib.asynccontextmanager
async def relay(cluster: Cluster, api: Api, system: str, served: str) -> AsyncIterator[tuple[Relay, ReadingGate]]:
    """Stand before the API, ready to run operators with the rights of their manifest."""
    token = token_of(await limited(cluster, api, system))
    async with reading_gate(cluster) as gate:
        kubeconfig = cluster.kubeconfig(f"gate-{system}", port=gate.port, token=token)
        options = {
            "kubeconfig": kubeconfig,
            "namespace": system,
            "watch-namespace": served,
            "router-placement": "system",
            "lease-s": 1.0,
            "http": "",
            "log-level": "error",
        }
        command = [f"--{name}={value}" for name, value in options.items()]
        runners = Relay([sys.executable, "-m", "tierline", "operator", "run", *command], gate)
        try:
            yield runners, gate
        finally:
            await runners.close()


def token_of(kubeconfig: Path) -> str:
    found: str = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
    return found


async def test_wherever_an_operator_is_killed_the_next_one_completes_what_it_began(cluster: Cluster, api: Api) -> None:
    system, namespace = await api.new_namespace(), await api.new_namespace()
    resources = RESOURCES.format(namespace)
    kinds = await Kinds.of(cluster, api)

    async def apply() -> str:
        uid: str = (await api.ask("POST", resources, resource(**SPEC)))["metadata"]["uid"]
        return uid

    async def found(uid: str) -> dict[str, Any]:
        own = await kinds.labelled(f"{OWNER_UID}={uid}")
        shared = await kinds.labelled(f"{MANAGED_BY}={FIELD_MANAGER},!{OWNER_UID}")
        said: dict[str, Any] = json.loads(json.dumps({**own, **shared}).replace(uid, "UID"))
        return said

    async def is_whole(uid: str) -> bool:
        """All children come before the status, and of what is shared, the node stores last."""
        stores = await names_at(api, f"/apis/apps/v1/namespaces/{system}/daemonsets")
        return bool(stores and await state(api, namespace, "demo") and await found(uid))

    async def is_as(wanted: dict[str, Any]) -> bool:
        return await is_whole(uid) and await found(uid) == wanted

    async def is_gone(uid: str) -> bool:
        """But for the Secrets that all endpoints share."""
        return not await names_at(api, resources) and all("/secrets " in each for each in await found(uid))

    async with relay(cluster, api, system, namespace) as (operators, gate):
        await operators.add()
        uid = await apply()
        await eventually(lambda: is_whole(uid), timeout_s=WITHIN_SECONDS)
        wanted, created = await found(uid), len(gate.writes)
        await api.ask("DELETE", f"{resources}/demo")
        await eventually(lambda: is_gone(uid), timeout_s=WITHIN_SECONDS)
        deleted = len(gate.writes) - created
        for secret in await names_at(api, SECRETS.format(system)):
            await api.ask("DELETE", f"{SECRETS.format(system)}/{secret}")
        gate.asked.clear()

        uid = await apply()
        deaths = 0
        for write in spread(created, DEATHS_OF_CREATION):
            deaths += await operators.kill_at(write, operators.quiet())
        assert deaths >= DEATHS_OF_CREATION / 2
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: is_as(wanted), timeout_s=WITHIN_SECONDS)
        assert await found(uid) == wanted
        assert max(made_secrets(gate).values()) == 1, "no Secret was made twice"
        assert not [each for each in gate.writes if each.method == "PUT" and "/secrets/" in each.path]

        gate.asked.clear()
        await api.ask("DELETE", f"{resources}/demo")
        deaths = 0
        for _ in range(DEATHS_OF_DELETION):  # what one has deleted, the next does not
            over = eventually(lambda: is_gone(uid), timeout_s=WITHIN_SECONDS)
            deaths += await operators.kill_at(1 + deleted // (DEATHS_OF_DELETION + 1), over)
        assert deaths >= DEATHS_OF_DELETION / 2
        await eventually(lambda: is_gone(uid), timeout_s=WITHIN_SECONDS)


def spread(writes: int, deaths: int) -> list[int]:
    """Return at which of so many writes to die, if so often, none as early as another."""
    return sorted({1 + each * writes // deaths for each in range(deaths)})


def made_secrets(gate: ReadingGate) -> Counter[str]:
    made = (each for each in gate.writes if each.method == "POST" and "/secrets?" in each.path and each.status == 201)
    return Counter(json.loads(each.body)["metadata"]["name"] for each in made)
