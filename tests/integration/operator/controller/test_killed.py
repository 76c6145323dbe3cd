"""The operator killed: whatever it had written last, the next one completes what it began.

As a program, by SIGKILL at some of its writes; in this process, at the first write of every kind that there is.
"""

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import web
from tests.endpoints import SPEC
from tests.integration.operator.controller.operators import (
    MERGE,
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
from tests.reading_gate import Asked, ReadingGate, Rule, reading_gate

from tierline.operator.config import OperatorConfig
from tierline.operator.controller.planning import planner
from tierline.operator.controller.server import OperatorServer, running
from tierline.operator.names import FIELD_MANAGER, MANAGED_BY, OWNER_UID

pytestmark = pytest.mark.timeout(600)

DEATHS_OF_CREATION, DEATHS_OF_DELETION = 4, 3
IDLE_SECONDS = 0.6
WITHIN_SECONDS = 240.0
ROUNDS = 3
"""Who dies of another write after the status and before the Event leaves nothing to tell; the next round does."""
DRIVERS = "/apis/storage.k8s.io/v1/csidrivers"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
TRIGGER = {"name": "requests", "query": "sum(requests)", "serverAddress": "http://prometheus:9090", "targetValue": 1}


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
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._leader = 0
        self._is_counted: Callable[[Asked], bool] = lambda _: False
        self._left = 0
        """Writes that count, until who leads is to die."""
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

    async def kill_at(
        self, write: int, is_counted: Callable[[Asked], bool], work: Awaitable[object] | None = None
    ) -> None:
        """Have who leads die at a write that the API has done already; ``work`` is what there is to write for first."""
        self._died.clear()
        self._is_counted, self._left = is_counted, write
        await self.add()  # who is to take over has read his modules by the time that he is needed
        if work is not None:
            await work
        async with asyncio.timeout(WITHIN_SECONDS):
            await self._died.wait()

    def _saw(self, asked: Asked) -> None:
        if "/leases" in asked.path and asked.method != "GET" and asked.status < 300:
            identity = json.loads(asked.body)["spec"]["holderIdentity"]
            self._leader = int(identity.split("-")[-2])
        is_counted = asked.is_write and self._is_counted(asked)
        if not is_counted or not self._left or self._leader not in self._running:
            return
        self._left -= 1  # whoever wrote: who loses the Lease on a busy machine, for a moment, begins anew
        if not self._left:
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
            "lease-s": 2.0,
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


@dataclass(frozen=True)
class Place:
    """Where an endpoint is asked for, and what is there of it."""

    api: Api
    kinds: Kinds
    system: str
    namespace: str

    @property
    def resources(self) -> str:
        return RESOURCES.format(self.namespace)

    async def apply(self, **spec: object) -> str:
        uid: str = (await self.api.ask("POST", self.resources, resource(**SPEC | spec)))["metadata"]["uid"]
        return uid

    async def found(self, uid: str) -> dict[str, Any]:
        own = await self.kinds.labelled(f"{OWNER_UID}={uid}")
        shared = await self.kinds.labelled(f"{MANAGED_BY}={FIELD_MANAGER},!{OWNER_UID}")
        said: dict[str, Any] = json.loads(json.dumps({**own, **shared}).replace(uid, "UID"))
        return said

    async def is_whole(self, uid: str) -> bool:
        """All children come before the status, and of what is shared, the node stores last."""
        stores = await names_at(self.api, f"/apis/apps/v1/namespaces/{self.system}/daemonsets")
        return bool(stores and await state(self.api, self.namespace, "demo") and await self.found(uid))

    async def is_as(self, uid: str, wanted: dict[str, Any]) -> bool:
        return await self.is_whole(uid) and await self.found(uid) == wanted

    async def is_gone(self, uid: str) -> bool:
        """But for the Secrets that all endpoints share."""
        listed = await names_at(self.api, self.resources)
        return not listed and all("/secrets " in each for each in await self.found(uid))

    async def forget_secrets(self) -> None:
        """Take away what all endpoints share and no operator does."""
        for secret in await names_at(self.api, SECRETS.format(self.system)):
            await self.api.ask("DELETE", f"{SECRETS.format(self.system)}/{secret}")


@pytest.fixture
async def place(cluster: Cluster, api: Api) -> Place:
    kinds = await Kinds.of(cluster, api)
    return Place(api, kinds, await api.new_namespace(), await api.new_namespace())


async def test_wherever_an_operator_is_killed_the_next_one_completes_what_it_began(
    cluster: Cluster, api: Api, place: Place
) -> None:
    async with relay(cluster, api, place.system, place.namespace) as (operators, gate):
        await operators.add()
        uid = await place.apply()
        await eventually(lambda: place.is_whole(uid), timeout_s=WITHIN_SECONDS)
        wanted, applied = await place.found(uid), len({each.path for each in gate.writes if is_of_a_child(each)})
        await api.ask("DELETE", f"{place.resources}/demo")
        await eventually(lambda: place.is_gone(uid), timeout_s=WITHIN_SECONDS)
        deleted = len({each.path for each in gate.writes if is_deletion(each)})
        await place.forget_secrets()
        gate.asked.clear()

        uid = await place.apply()
        for write in spread(applied, DEATHS_OF_CREATION):  # each applies all anew, and so comes to his death
            await operators.kill_at(write, lambda _: True)
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: place.is_as(uid, wanted), timeout_s=WITHIN_SECONDS)
        assert await place.found(uid) == wanted
        assert max(made_secrets(gate).values()) == 1, "no Secret was made twice"
        assert not [each for each in gate.writes if each.method == "PUT" and "/secrets/" in each.path]

        ends: Awaitable[object] | None = api.ask("DELETE", f"{place.resources}/demo")
        for _ in range(DEATHS_OF_DELETION):  # what one has deleted, the next does not; nor what was under way
            await operators.kill_at(deleted // DEATHS_OF_DELETION - 1, is_deletion, ends)
            ends = None
        await eventually(lambda: place.is_gone(uid), timeout_s=WITHIN_SECONDS)


STATUS, EVENTS = "PUT inferenceendpointconfigs/status", "POST events"
"""Kinds of writes, as :func:`kind_of` has them."""


class Mortals:
    """Operators in this process, one after the other: each dies at its first write of a kind at which none has died.

    Who dies hears no answer, not even that of the write, which the API has done, and nothing that he says is heard
    any more.

    Parameters
    ----------
    config
        Of each; the way to the API is through the gate.
    gate
        Sees what they write.
    api
        To take the Lease away from the dead with, so that nobody waits until it is over.
    """

    def __init__(self, config: OperatorConfig, gate: ReadingGate, api: Api) -> None:
        self.deaths: set[str] = set()
        """Kinds of writes."""
        self._config = config
        self._gate = gate
        self._api = api
        self._is_dead = asyncio.Event()
        gate.rules.append(Rule(lambda _: self._is_dead.is_set(), self._unheard))

    async def undisturbed(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Have one work until something holds, and all is done."""
        self._gate.answered = lambda _: None
        async with self._one() as server:
            await self._over(server, holds)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Have one after the other die, until one need not because something holds and all is done."""
        self._gate.answered = self._saw
        while not await self._lives(holds):
            pass

    async def _lives(self, holds: Callable[[], Awaitable[bool]]) -> bool:
        async with self._one() as server:
            over = asyncio.create_task(self._over(server, holds))
            died = asyncio.create_task(self._is_dead.wait())
            await asyncio.wait((over, died), return_when=asyncio.FIRST_COMPLETED)
            is_alive = not self._is_dead.is_set()
            for task in (over, died):
                task.cancel()
            await asyncio.gather(over, died, return_exceptions=True)
        if is_alive:
            over.result()
        return is_alive

    @contextlib.asynccontextmanager
    async def _one(self) -> AsyncIterator[OperatorServer]:
        async with running(self._config, planner(self._config)) as server:
            yield server
        for lease in await names_at(self._api, LEASES.format(self._config.namespace)):
            await self._api.ask("DELETE", f"{LEASES.format(self._config.namespace)}/{lease}")
        self._is_dead.clear()

    async def _over(self, server: OperatorServer, holds: Callable[[], Awaitable[bool]]) -> None:
        await eventually(lambda: server.loop is not None and server.loop.is_synced, timeout_s=WITHIN_SECONDS)
        await eventually(holds, timeout_s=WITHIN_SECONDS)
        before = -1
        while before != len(self._gate.asked):
            before = len(self._gate.asked)
            await asyncio.sleep(IDLE_SECONDS)

    def _saw(self, asked: Asked) -> None:
        if not asked.is_write:
            return
        kind = kind_of(asked)
        is_too_early = kind == STATUS and EVENTS not in self.deaths  # who dies before he tells, tells nobody later
        if (kind not in self.deaths and not is_too_early) or self._is_dead.is_set():
            self.deaths.add(kind)
            self._is_dead.set()
            raise ConnectionResetError

    async def _unheard(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        raise ConnectionResetError


async def test_an_operator_that_dies_at_any_kind_of_write_leaves_nothing_that_the_next_does_not_mend(
    cluster: Cluster, api: Api, place: Place
) -> None:
    account = token_of(await limited(cluster, api, place.system))
    asked_for = {"autoScalingSpec": {"prometheusTrigger": TRIGGER}}
    change = {
        "autoScalingSpec": None,
        "modelSourceConfig": {"s3Storage": {**SPEC["modelSourceConfig"]["s3Storage"], "bucketName": "another"}},
    }

    async def is_changed(uid: str) -> bool:
        """What was there for the former bucket and the autoscaler is gone, and so it is said."""
        found = await api.ask("GET", f"{place.resources}/demo")
        is_seen = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        names = " ".join(await place.found(uid))
        return is_seen and "horizontalpodautoscalers" not in names and names.count("/persistentvolumes ") == 1

    async with reading_gate(cluster) as gate:
        config = OperatorConfig(
            namespace=place.system,
            watched_namespaces=(place.namespace,),
            kubeconfig=cluster.kubeconfig(f"gate-{place.system}", port=gate.port, token=account),
            router_placement="system",
            http="",
            lease_s=60.0,
        )
        operators = Mortals(config, gate, api)

        uid = await place.apply(**asked_for)
        await operators.undisturbed(lambda: place.is_whole(uid))
        created = await place.found(uid)
        await api.ask("PATCH", f"{place.resources}/demo", {"spec": change}, MERGE)
        await operators.undisturbed(lambda: is_changed(uid))
        changed = await place.found(uid)
        await api.ask("DELETE", f"{place.resources}/demo")
        await operators.undisturbed(lambda: place.is_gone(uid))
        kinds = {kind_of(each) for each in gate.writes}
        await place.forget_secrets()
        gate.asked.clear()

        for _ in range(ROUNDS):
            uid = await place.apply(**asked_for)
            await operators.until(partial(place.is_as, uid, created))
            await api.ask("PATCH", f"{place.resources}/demo", {"spec": change}, MERGE)
            await operators.until(partial(place.is_as, uid, changed))
            assert max(made_secrets(gate).values()) == 1, "no Secret was made twice"
            await api.ask("DELETE", f"{place.resources}/demo")
            await operators.until(partial(place.is_gone, uid))
            if operators.deaths >= kinds:
                break
            await place.forget_secrets()
            gate.asked.clear()
        assert operators.deaths >= kinds


def kind_of(asked: Asked) -> str:
    """Return what a write does to which kind of objects: ``PATCH deployments``."""
    found = re.match(
        r"/apis?(?:/[^/]+)?/v[^/]+(?:/namespaces/[^/]+)?/([^/]+)(?:/[^/]+)?(/[^/]+)?", urlsplit(asked.path).path
    )
    assert found is not None, asked.path
    kind = f"{asked.method} {found[1]}{found[2] or ''}"
    is_last = kind == "PATCH inferenceendpointconfigs" and not json.loads(asked.body)["metadata"]["finalizers"]
    return f"{kind}: no finalizer" if is_last else kind


def is_of_a_child(asked: Asked) -> bool:
    return asked.method == "PATCH" and "force=true" in asked.path


def is_deletion(asked: Asked) -> bool:
    return asked.method == "DELETE"


def spread(writes: int, deaths: int) -> list[int]:
    """Return at which of so many writes to die, if so often, none as early as another."""
    return sorted({1 + each * writes // deaths for each in range(deaths)})


def made_secrets(gate: ReadingGate) -> Counter[str]:
    made = (each for each in gate.writes if each.method == "POST" and "/secrets?" in each.path and each.status == 201)
    return Counter(json.loads(each.body)["metadata"]["name"] for each in made)
