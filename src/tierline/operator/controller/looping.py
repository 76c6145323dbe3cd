"""What the operator that leads does: follow resources and children, and look at each resource that may need it.

Invariant: whatever is followed is only a reason to look. A look begins from the API itself.
"""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import aiohttp
from prometheus_client import Histogram

from tierline import logs
from tierline.duties import Duties
from tierline.errors import ClusterRefused, ClusterUnavailable
from tierline.kube.api import Call, KubernetesApi, Watched, follow
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.config import OperatorConfig
from tierline.operator.controller.children import Children
from tierline.operator.controller.discovering import Discovery
from tierline.operator.controller.events import Events
from tierline.operator.controller.health import stuck
from tierline.operator.controller.kinds import FOLLOWED, RESOURCES, children, newest
from tierline.operator.controller.live import SHARED, Live, kind_of
from tierline.operator.controller.planning import Planner
from tierline.operator.controller.queue import Queue
from tierline.operator.controller.reconciling import SHARED_KEY, Key, Reconciler
from tierline.operator.controller.status import DELETING

log = logs.get(__name__)

SETTLE_SECONDS = 0.25
"""A child that changes seldom does so alone; so long is waited for the others."""
DISCOVERY_SECONDS = 60.0
FIRST_LISTS_SECONDS = 15.0
"""So long, what cannot be listed is waited for: without it, nothing of its kind is swept up."""
FIRST_LOOKS_APART_SECONDS = 2.0
RESYNC_SECONDS = 600.0
_LOOKED_AT: ContextVar[Key | None] = ContextVar("looked_at", default=None)
"""What the worker looks at whose task this is, or on whose behalf."""
_SELECTOR = f"{names.MANAGED_BY}={names.FIELD_MANAGER}"


class Loop:
    """A term of leadership, from its beginning to its end.

    Parameters
    ----------
    api, connected
        The way to the API, and a connection that is there already.
    planner
        What is wanted.
    config
        The operator's.
    identity
        Which operator this is, in Events.
    duties
        Guards what goes on beside.
    seconds
        Is told how long each look took.
    discovery
        Knows what former terms have found, too.
    """

    def __init__(
        self,
        api: KubernetesApi,
        connected: Any,
        planner: Planner,
        config: OperatorConfig,
        identity: str,
        duties: Duties,
        seconds: Histogram,
        discovery: Discovery,
    ) -> None:
        self.is_synced = False
        """What there is has been listed."""
        self.looks: Counter[tuple[str, str]] = Counter()
        """By kind, and by how they ended."""
        self.queue: Queue[Key] = Queue(time.monotonic)
        self.events = Events(self._cluster_of(connected), identity)
        self.children = Children(self._cluster_of(connected), self._owner_changed, time.monotonic)
        self.reconciler = Reconciler(
            self._cluster_of(connected),
            self.children,
            planner,
            config,
            self.events,
            lambda: self.queue.add(SHARED_KEY, SETTLE_SECONDS),
        )
        self._discovery = discovery
        self._planner = planner
        self._catalogue = planner.catalogue()
        """As it was when all that ask for its models were queued last."""
        self._api = api
        self._connected = connected
        self._config = config
        self._duties = duties
        self._seconds = seconds
        self._keys: dict[str, Key] = {}
        """Of resources that were seen, by uid."""
        self._watches: dict[tuple[str, str], tuple[Watched[Any], asyncio.Task[None]]] = {}
        self._listed: Counter[tuple[str, str]] = Counter()
        self._was_listed = asyncio.Event()

    @property
    def watch_failures(self) -> int:
        """Requests of watches that failed, and objects that could not be read."""
        return sum(watched.failures for watched, _ in self._watches.values())

    @property
    def stuck(self) -> str:
        """What does not move any more, and why that is thought; empty: all does."""
        followed = [watched for watched, _ in self._watches.values()]
        ended = [watched.what for watched, task in self._watches.values() if task.done()]
        workers = self._config.workers if self.is_synced else 0
        return stuck(self.queue, workers, followed, ended)

    @property
    def is_behind(self) -> bool:
        """What is known may be old."""
        return any(watched.is_behind for watched, _ in self._watches.values())

    async def run(self) -> None:
        """Follow and look, until cancelled."""
        try:
            await self._discover_first()
            await self._first_lists()
            self.is_synced = True
            log.info("the operator has seen what there is", resources=len(self._keys), children=len(self.children))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._duties.keep_up("discovery", self._rediscover))
                for _ in range(self._config.workers):
                    tasks.create_task(self._duties.keep_up("reconciling", self._work))
        finally:
            following = [task for _, task in self._watches.values()]
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    # Following ------------------------------------------------------------------------------------------------------

    async def _discover_first(self) -> None:
        """Look what there is; an API that has just started serves resources like ours some seconds after all else."""
        await self._discover(is_first=True)
        while self._unserved() and not self._discovery.is_settled:
            await asyncio.sleep(FIRST_LOOKS_APART_SECONDS)
            await self._discover(is_first=True)
        if missing := self._unserved():
            log.warning("the cluster does not know our resources: tierline operator crds", missing=missing)

    def _unserved(self) -> list[str]:
        return [kind for kind in FOLLOWED if newest(self.children.served, kind) is None]

    async def _discover(self, *, is_first: bool = False) -> None:
        capabilities, served = await self._discovery.look(self._cluster_of(self._connected))
        if capabilities == self.reconciler.capabilities and served == self.children.served:
            return
        self.reconciler.capabilities, self.children.served = capabilities, served
        watched = {(kind.name, each) for kind, each in self._wanted_watches()}
        for kind, namespace in self._wanted_watches():
            if (kind.name, namespace) not in self._watches:
                self._follow(kind, namespace)
        for gone in self._watches.keys() - watched:
            self._watches.pop(gone)[1].cancel()
        if not is_first:
            log.info("the cluster has changed", version=capabilities.version, kinds=len(capabilities.kinds))
            for key in [*self._keys.values(), SHARED_KEY]:
                self.queue.add(key)

    async def _rediscover(self) -> None:
        while True:
            await asyncio.sleep(DISCOVERY_SECONDS)
            self._follow_catalogue()
            was_settled = self._discovery.is_settled
            await self._discover()
            if self._discovery.is_settled and not was_settled:
                self.queue.add(SHARED_KEY)

    def _follow_catalogue(self) -> None:
        catalogue = self._planner.catalogue()
        if catalogue is self._catalogue:
            return
        self._catalogue = catalogue
        log.info("the catalogue has changed")
        for key in self._keys.values():
            if key.kind == "JumpStartModel":
                self.queue.add(key)

    def _wanted_watches(self) -> list[tuple[Kind, str]]:
        served, namespaces = self.children.served, self._config.watched_namespaces
        resources = [found for kind in FOLLOWED if (found := newest(served, kind)) is not None]
        beside = tuple(dict.fromkeys((*namespaces, self._config.namespace))) if namespaces else ("",)
        return [
            *((kind, namespace) for kind in resources for namespace in namespaces or ("",)),
            *(
                (kind, namespace)
                for kind in children(served)
                for namespace in (beside if kind.is_namespaced else ("",))
            ),
        ]

    def _follow(self, kind: Kind, namespace: str) -> None:
        is_resource = kind.name in FOLLOWED
        which = (kind.name, namespace)
        watched: Watched[Live] = Watched(
            f"{kind.name} {namespace}".strip(),
            kind_of(kind.name),
            "" if is_resource else _SELECTOR,
            functools.partial(self._note_list, which),
            functools.partial(self._resource_seen, kind.name) if is_resource else self.children.seen,
        )
        path = kind.path(namespace or None)
        task = asyncio.create_task(follow(self._api, watched, functools.partial(_calls, path)))
        self._watches[which] = (watched, task)

    def _note_list(self, which: tuple[str, str], objects: Mapping[str, Live]) -> None:  # noqa: ARG002  (a watch's)
        self._listed[which] += 1
        if which[0] in RESOURCES:
            self.queue.add(SHARED_KEY, SETTLE_SECONDS)
        self._was_listed.set()

    async def _first_lists(self) -> None:
        def unlisted() -> list[str]:
            return sorted(f"{kind} {namespace}".strip() for kind, namespace in self._watches.keys() - set(self._listed))

        try:
            async with asyncio.timeout(FIRST_LISTS_SECONDS):
                while unlisted():
                    self._was_listed.clear()
                    await self._was_listed.wait()
        except TimeoutError:
            log.warning("not everything could be listed; the operator goes on without", missing=unlisted())

    def _resource_seen(self, kind: str, uid: str, was: Live | None, now: Live | None) -> None:
        current = now or was
        assert current is not None
        key = Key(kind, current.metadata.namespace, current.metadata.name)
        if now is None:
            self._keys.pop(uid, None)
        else:
            self._keys[uid] = key
        is_new = was is None or now is None or was.metadata.generation != now.metadata.generation
        self.queue.add(key, 0.0 if is_new else SETTLE_SECONDS)

    def _owner_changed(self, owner: str) -> None:
        if owner != SHARED:
            if owner in self._keys:
                self.queue.add(self._keys[owner], SETTLE_SECONDS)
            return
        self.queue.add(SHARED_KEY, SETTLE_SECONDS)
        for key, endpoint in self.reconciler.endpoints.items():
            if endpoint is not None and endpoint.spec.kv_cache_spec is not None:
                self.queue.add(key, SETTLE_SECONDS)

    # Looking --------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            key = await self.queue.take()
            _LOOKED_AT.set(key)
            started = time.monotonic()
            try:
                again_s = await self._look(key)
            except (ClusterRefused, ClusterUnavailable) as error:
                wait_s = self.queue.failed(key, error.retry_after_s if isinstance(error, ClusterRefused) else 0.0)
                self.looks[key.kind, "failed"] += 1
                log.warning("to be tried again", **_named(key), why=str(error), in_s=round(wait_s, 1))
            except BaseException:
                self.queue.failed(key)
                self.looks[key.kind, "failed"] += 1
                raise
            else:
                self.queue.done(key, again_s)
                self.looks[key.kind, "done"] += 1
            finally:
                self._seconds.observe(time.monotonic() - started)

    async def _look(self, key: Key) -> float | None:
        self.reconciler.unlisted = frozenset(kind for kind, _ in self._watches.keys() - set(self._listed))
        if key == SHARED_KEY:
            ending = {each for each, state in self.reconciler.states.items() if state == DELETING}
            asking = {each for each in self._keys.values() if each.kind in RESOURCES}
            unseen = asking - self.reconciler.endpoints.keys() - ending
            asked = [which for which in self._watches if which[0] in RESOURCES]
            # Of an API that serves none of ours nothing is known: it has just started, or there are no endpoints.
            is_known = {kind for kind, _ in asked} >= set(RESOURCES) or (bool(asked) and self._discovery.is_settled)
            is_listed = is_known and all(which in self._listed for which in asked)
            again_s = await self.reconciler.reconcile_shared(unseen, is_listed=is_listed)
            return RESYNC_SECONDS if again_s is None else min(again_s, RESYNC_SECONDS)
        again_s = await self.reconciler.reconcile(key)
        if key not in self.reconciler.endpoints:  # it is gone, or about to be
            return again_s
        return RESYNC_SECONDS if again_s is None else min(again_s, RESYNC_SECONDS)

    def _cluster_of(self, connected: Any) -> Cluster:
        return Cluster(connected, names.FIELD_MANAGER, self._stirred)

    def _stirred(self) -> None:
        """Take in that a request began or has ended, of whichever worker's look it is, if of any."""
        if (key := _LOOKED_AT.get()) is not None:
            self.queue.stirred(key)


def _named(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name} if key.kind else {"kind": "shared"}


def _calls(path: str, connected: Any) -> Sequence[Call]:
    def call(
        *, _preload_content: bool, _request_timeout: float, **options: object
    ) -> Awaitable[aiohttp.ClientResponse]:
        query = [(_camel(key), "true" if value is True else str(value)) for key, value in options.items()]
        asked: Awaitable[aiohttp.ClientResponse] = connected.call_api(
            path,
            "GET",
            query_params=query,
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=_preload_content,
            _request_timeout=_request_timeout,
        )
        return asked

    return [call]


def _camel(option: str) -> str:
    first, *others = option.strip("_").split("_")
    return first + "".join(part.capitalize() for part in others)
