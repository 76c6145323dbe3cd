"""Objects of a Kubernetes API, as they are and as they change: list, watch, list again when the watch cannot go on.

Rule: what was seen last stays true until something newer is seen. A server that is away, refuses, or talks nonsense is
asked again, later each time, and nobody is told that there is nothing.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import uniform
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec

from tierline import logs
from tierline.errors import UsageError

log = logs.get(__name__)

WATCH_SECONDS = 60
"""A watch ends after so long and is begun anew where it stood: so a connection that broke without a word is noticed."""
WATCHES_APART_SECONDS = 1.0
"""From the beginning of a watch to the next: a server, or a proxy before it, may end each at once."""
ANSWER_SECONDS = 15.0
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
PAGE_OBJECTS = 500
_WARNED_EVERY_SECONDS = 60.0
_GONE, _NOT_FOUND = 410, 404

Call = Callable[..., Awaitable[aiohttp.ClientResponse]]
"""Lists or watches one kind of objects; with ``_preload_content=False``, as it comes over the wire."""


class Metadata(msgspec.Struct, rename="camel"):
    """What every object has."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    annotations: dict[str, str] | None = None


class _ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str
    continues: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Identity(msgspec.Struct, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""


class _Identified(msgspec.Struct):
    metadata: _Identity


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


class ApiFailure(Exception):  # noqa: N818  (it is the API's)
    """The API answered otherwise than was hoped for.

    Parameters
    ----------
    status
        Of the answer, or of the watch's error.
    message
        What it said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}".strip())
        self.status = status


class KubernetesApi:
    """A connection, made anew, with whatever the files then say, whenever something failed.

    Parameters
    ----------
    kubeconfig
        A file for ``kubectl``; ``None``: the pod's own account, or where this is none, what ``kubectl`` would take.

    Raises
    ------
    UsageError
        A package is missing.
    """

    def __init__(self, kubeconfig: Path | None) -> None:
        try:
            from kubernetes_asyncio import client, config
        except ImportError:
            raise UsageError("Kubernetes as a source needs a package: pip install 'tierline[kubernetes]'") from None
        self._client, self._config = client, config
        self._kubeconfig = kubeconfig

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """Give a client of ``kubernetes_asyncio`` for the time of a ``with`` block.

        Raises
        ------
        UsageError
            There is no configuration, or it cannot be used.
        """
        configuration = self._client.Configuration()
        no_way = f"no way to a Kubernetes API by {self._kubeconfig or 'the account of this pod or the file of kubectl'}"
        try:
            if self._kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                self._config.load_incluster_config(client_configuration=configuration)
            else:
                await self._config.load_kube_config(
                    self._file(), client_configuration=configuration, persist_config=False
                )
        except (self._config.ConfigException, OSError) as error:
            raise UsageError(f"{no_way}: {error}") from error
        except Exception as error:  # noqa: BLE001  (yaml raises what it pleases, and its messages quote the file)
            raise UsageError(f"{no_way}: {type(error).__name__}") from None
        async with self._client.ApiClient(configuration) as connected:
            yield connected

    def current_namespace(self) -> str:
        """Return the namespace of the file's current context; empty where none is said, or there is no file."""
        try:
            _, current = self._config.list_kube_config_contexts(self._file())
        except (self._config.ConfigException, OSError):
            return ""  # who connects is told why
        return str(current["context"].get("namespace") or "")

    def _file(self) -> str | None:
        """Return what to read; the library itself looks at the environment only when it is imported."""
        return str(self._kubeconfig) if self._kubeconfig is not None else os.environ.get("KUBECONFIG")

    def pods(self, connected: Any, namespace: str) -> Call:
        """Return what lists and watches the pods of a namespace."""
        core = self._client.CoreV1Api(connected)
        return lambda **options: core.list_namespaced_pod(namespace, **options)

    async def set_condition(self, connected: Any, namespace: str, pod: str, condition: str) -> None:
        """Say of a pod that a condition of it is true.

        Raises
        ------
        ApiFailure
            The API does not let us.
        """
        said = {"status": {"conditions": [{"type": condition, "status": "True"}]}}
        kind = "application/strategic-merge-patch+json"
        core = self._client.CoreV1Api(connected)
        try:
            await core.patch_namespaced_pod_status(
                pod, namespace, said, _content_type=kind, _request_timeout=ANSWER_SECONDS
            )
        except self._client.ApiException as error:
            raise ApiFailure(error.status, error.reason) from error

    def endpoint_slices(self, connected: Any, namespace: str, version: str) -> Call:
        """Return what lists and watches the EndpointSlices of a namespace, in one version of their API."""
        custom = self._client.CustomObjectsApi(connected)

        def call(**options: object) -> Awaitable[aiohttp.ClientResponse]:
            found: Awaitable[aiohttp.ClientResponse] = custom.list_namespaced_custom_object(
                "discovery.k8s.io", version, namespace, "endpointslices", **options
            )
            return found

        return call


T = TypeVar("T")


class Watched(Generic[T]):
    """The objects that a selector names, followed.

    Parameters
    ----------
    what
        What they are, for the log.
    kind
        What is read of each.
    selector
        Of labels.
    changed
        Called with all objects, by uid, whenever that is something new.
    seen
        Called before that with each object that is new or not as it was, and with each that is gone: with its uid, and
        what it was and is, ``None`` where it was or is none.
    clock
        Seconds, monotonic; by it, a watch that does not move any more is known.

    Attributes
    ----------
    what
        As given.
    """

    def __init__(
        self,
        what: str,
        kind: type[T],
        selector: str,
        changed: Callable[[Mapping[str, T]], None],
        seen: Callable[[str, T | None, T | None], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.failures = 0
        """Requests that failed, and objects that could not be read."""
        self.is_behind = True
        """What is known may be old: nothing was read yet, or the last request failed."""
        self._decode = msgspec.json.Decoder(kind).decode
        self._selector = selector
        self._changed = changed
        self._seen = seen
        self._objects: dict[str, T] = {}
        self._unreadable: dict[str, str] = {}
        """Versions of objects that could not be read, by uid."""
        self._version = ""
        """Where a watch can go on; empty when it cannot."""
        self._failures_in_row = 0
        self._warn_again_at = 0.0
        self._clock = clock
        self._stirred_at = clock()

    @property
    def still_s(self) -> float:
        """Seconds since the last step: a request that began, anything that came, a failure."""
        return self._clock() - self._stirred_at

    async def follow(self, calls: Sequence[Call]) -> None:
        """Follow them until something fails that a new connection might better; 410 is no such thing.

        Parameters
        ----------
        calls
            Ways to list and watch them, of which the first is taken that the server knows.
        """
        call: Call | None = None
        clock = asyncio.get_running_loop().time
        while True:
            next_at = clock() + WATCHES_APART_SECONDS
            self._stirred_at = self._clock()
            try:
                if call is None or not self._version:
                    call = await self._list_by_any(calls)
                await self._watch(call)
            except ApiFailure as failure:
                if failure.status != _GONE:
                    raise
                log.info("watch is too far behind and begins anew", what=self.what)
                self._version = ""
            await asyncio.sleep(max(0.0, next_at - clock()))

    async def failed(self, why: str) -> None:
        """Note that following failed, and wait before it is tried again."""
        self.failures += 1
        self._stirred_at = self._clock()
        self.is_behind = True
        now = asyncio.get_running_loop().time()
        if now >= self._warn_again_at:
            self._warn_again_at = now + _WARNED_EVERY_SECONDS
            log.warning("Kubernetes cannot be asked; what is known stays in force", what=self.what, why=why)
        step = min(self._failures_in_row, len(BACKOFF_SECONDS) - 1)
        self._failures_in_row += 1
        await asyncio.sleep(BACKOFF_SECONDS[step] * uniform(0.5, 1.0))  # not all programs come back at once

    def _succeeded(self) -> None:
        if self.is_behind and self._failures_in_row:
            log.info("Kubernetes answers again", what=self.what)
            self._warn_again_at = 0.0
        self.is_behind = False
        self._failures_in_row = 0

    async def _list_by_any(self, calls: Sequence[Call]) -> Call:
        *others, last = calls
        for call in others:
            try:
                await self._list(call)
            except ApiFailure as failure:
                if failure.status != _NOT_FOUND:
                    raise
            else:
                return call
        await self._list(last)
        return last

    async def _list(self, call: Call) -> None:
        found: dict[str, T] = {}
        continues = ""
        while True:
            async with await call(
                label_selector=self._selector,
                limit=PAGE_OBJECTS,
                **({"_continue": continues} if continues else {}),
                _preload_content=False,
                _request_timeout=ANSWER_SECONDS,
            ) as response:
                body = await response.read()
            self._stirred_at = self._clock()
            if response.status != 200:
                raise failure(response.status, body)
            page = msgspec.json.decode(body, type=_List)
            for item in page.items or ():
                self._read(item, found)
            continues = page.metadata.continues
            if not continues:
                break
        former, self._objects, self._version = self._objects, found, page.metadata.resource_version
        self._succeeded()
        if self._seen is not None:
            for uid in former.keys() | found.keys():
                was, now = former.get(uid), found.get(uid)
                if was is not now and was != now:
                    self._seen(uid, was, now)
        self._changed(self._objects)

    async def _watch(self, call: Call) -> None:
        """Take in what changes, until the server ends the watch as it was asked to."""
        async with await call(
            label_selector=self._selector,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=self._version,
            timeout_seconds=WATCH_SECONDS,
            _preload_content=False,
            _request_timeout=WATCH_SECONDS + ANSWER_SECONDS,
        ) as response:
            if response.status != 200:
                raise failure(response.status, await response.read())
            self._succeeded()
            unread = bytearray()
            async for data in response.content.iter_any():
                self._stirred_at = self._clock()
                unread += data
                *lines, rest = unread.split(b"\n")
                if lines:
                    self._take([bytes(line) for line in lines if line])
                    unread = bytearray(rest)

    def _take(self, lines: list[bytes]) -> None:
        is_changed = False
        for line in lines:
            event = msgspec.json.decode(line, type=_Event)
            if event.type == "ERROR":
                self._version = ""
                status = msgspec.json.decode(event.object, type=_Status)
                raise ApiFailure(status.code, status.message)
            who = _identity(event.object)
            was = self._objects.get(who.uid)
            if event.type == "DELETED":
                is_changed = self._objects.pop(who.uid, None) is not None or is_changed
                self._unreadable.pop(who.uid, None)
            elif event.type in ("ADDED", "MODIFIED"):
                is_changed = self._read(event.object, self._objects) or is_changed
            self._version = who.resource_version
            if self._seen is not None and (now := self._objects.get(who.uid)) is not was:
                self._seen(who.uid, was, now)
        if is_changed:
            self._changed(self._objects)

    def _read(self, item: msgspec.Raw, objects: dict[str, T]) -> bool:
        """Put an object among ``objects``; return whether it could be read. One that cannot stays what it was last.

        The others are no worse for it: a whole list is not given up for what one object says.
        """
        who = _identity(item)
        try:
            objects[who.uid] = self._decode(item)
        except msgspec.ValidationError as error:
            if who.uid in self._objects:
                objects[who.uid] = self._objects[who.uid]
            if self._unreadable.get(who.uid) != who.resource_version:  # else it has been said
                self._unreadable[who.uid] = who.resource_version
                self.failures += 1
                log.error("an object cannot be read", what=self.what, object=who.name, why=str(error))
            return False
        self._unreadable.pop(who.uid, None)
        return True


async def follow(api: KubernetesApi, watched: Watched[Any], calls: Callable[[Any], Sequence[Call]]) -> None:
    """Follow objects for good, over a new connection whenever one failed.

    Parameters
    ----------
    calls
        Given a client, ways to list and watch them, as :meth:`Watched.follow` takes them.
    """
    while True:
        try:
            async with api.connected() as connected:
                await watched.follow(calls(connected))
        except (aiohttp.ClientError, ApiFailure, TimeoutError, OSError, msgspec.MsgspecError, UsageError) as error:
            await watched.failed(str(error) or type(error).__name__)


def _identity(item: msgspec.Raw) -> _Identity:
    return msgspec.json.decode(item, type=_Identified).metadata


def failure(status: int, body: bytes) -> ApiFailure:
    """Return what an answer says that is none, in the words of the ``Status`` object in it."""
    try:
        message = json.loads(body).get("message", "")
    except (ValueError, AttributeError):
        message = ""
    return ApiFailure(status, str(message))
