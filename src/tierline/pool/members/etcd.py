"""Members that etcd has: each node keeps a key alive with a lease, and follows the keys under one prefix.

By etcd's JSON gateway (3.4 and later), which needs no gRPC. What changes under the prefix is a reason to list it again,
and it is listed from time to time in any case: so what is known is always one listing, whatever a watch missed.

Rule: while etcd cannot be asked, what it listed last stays in force. The key of a node that is gone goes with its
lease; one that was suspended for longer than that comes back by itself.
"""

import asyncio
import contextlib
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import uniform
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import msgspec

from tierline import logs
from tierline.errors import UsageError
from tierline.pool.members.base import Member
from tierline.pool.members.etcd_address import EtcdAddress

log = logs.get(__name__)

LEASE_SECONDS = 10
"""A node that is gone without a word stays a member for so long: its peers notice by themselves, and earlier."""
WATCH_SECONDS = 30.0
"""A watch ends after so long and everything is listed: so a connection that broke without a word is noticed."""
LISTINGS_APART_SECONDS = 0.2
"""When many nodes come at once, their keys are read together."""
ANSWER_SECONDS = 5.0
LEAVE_SECONDS = 2.0
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0)
MOST_MEMBERS = 4096
_WARNED_EVERY_SECONDS = 60.0
_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104  (what is listened on, and cannot be called)


@dataclass(frozen=True)
class EtcdCredentials:
    """What etcd is shown, as files that are read anew whenever a connection is made.

    Parameters
    ----------
    password
        Of the address's user.
    authority
        PEM file of the authorities to trust; ``None``: the system's.
    certificate
        PEM file with a certificate of our own and its key.
    """

    password: Path | None = None
    authority: Path | None = None
    certificate: Path | None = None


# What is read of its answers ------------------------------------------------------------------------------------------

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class _Header(msgspec.Struct):
    revision: int = 0


class _KeyValue(msgspec.Struct):
    key: str
    value: str = ""


class _Range(msgspec.Struct):
    header: _Header
    kvs: list[_KeyValue] = []


class _Lease(msgspec.Struct):
    lease: str = msgspec.field(default="", name="ID")
    ttl: int = msgspec.field(default=0, name="TTL")


class _KeptAlive(msgspec.Struct):
    result: _Lease


class _Watched(msgspec.Struct):
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: list[msgspec.Raw] = []


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""


class _WatchLine(msgspec.Struct):
    result: _Watched | None = None
    error: _Error | None = None


class _Token(msgspec.Struct):
    token: str


class _Place(msgspec.Struct):
    """Value of a member's key, in JSON."""

    host: _Text
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class EtcdFailure(Exception):  # noqa: N818  (it is etcd's)
    """etcd answered otherwise than was hoped for."""


_FAILURES = (EtcdFailure, aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError, UsageError)

T = TypeVar("T")
_Work = Literal["membership of this node", "members"]


class EtcdMembers:
    """The members under one prefix, this node among them for as long as :meth:`member_sets` is iterated.

    Invariant: our key was put with ``_lease``, which was not yet found to be gone; empty: there is none.

    Parameters
    ----------
    address
        Where etcd is.
    own
        This node, as it will be called and reached. A host that is a wildcard stands for the address that the machine
        has on its way to etcd.
    credentials
        What etcd is shown.
    lease_s
        The key of a node that is gone goes after so long.

    Attributes
    ----------
    name
        For people.
    failures
        Requests that failed, and keys that could not be used; one that stays as it is counts once.
    is_behind
        Whether what is known may be old.
    """

    def __init__(
        self,
        address: EtcdAddress,
        own: Member,
        credentials: EtcdCredentials = EtcdCredentials(),
        *,
        lease_s: int = LEASE_SECONDS,
    ) -> None:
        self.name = f"etcd {address}"
        self.failures = 0
        self.is_behind = True
        self._address = address
        self._own = own
        self._credentials = credentials
        self._lease_s = lease_s
        self._lease = ""
        self._members: tuple[Member, ...] = ()
        self._refused: frozenset[str] = frozenset()
        self._is_changed = asyncio.Event()
        self._wants_key = asyncio.Event()
        self._warn_again_at: dict[_Work, float] = {}

    async def member_sets(self) -> AsyncGenerator[Sequence[Member], None]:
        """See :class:`~tierline.pool.members.base.MemberSource`; the key goes when the iteration is closed."""
        tasks = [
            asyncio.create_task(self._for_good("membership of this node")),
            asyncio.create_task(self._for_good("members")),
        ]
        for task in tasks:
            task.add_done_callback(lambda _: self._is_changed.set())
        try:
            while True:
                await self._is_changed.wait()
                self._is_changed.clear()
                for task in tasks:
                    if task.done():
                        task.result()
                yield self._members
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._leave()

    async def _for_good(self, work: _Work) -> None:
        """Do one of the two, over a new connection, to the next server, whenever one failed."""
        do = self._follow if work == "members" else self._keep
        in_row = 0
        for url in cycle(self._address.urls):
            try:
                async with self._connected(url) as etcd, contextlib.aclosing(do(etcd)) as steps:
                    async for _ in steps:
                        in_row = 0
                        if self._warn_again_at.pop(work, None) is not None:
                            log.info("etcd answers again", source=self.name, what=work)
            except _FAILURES as error:
                self._failed(work, str(error) or type(error).__name__)
            await asyncio.sleep(BACKOFF_SECONDS[min(in_row, len(BACKOFF_SECONDS) - 1)] * uniform(0.5, 1.0))
            in_row += 1

    def _failed(self, work: _Work, why: str) -> None:
        self.failures += 1
        self.is_behind = self.is_behind or work == "members"
        now = asyncio.get_running_loop().time()
        if now >= self._warn_again_at.get(work, 0.0):
            self._warn_again_at[work] = now + _WARNED_EVERY_SECONDS
            log.warning("etcd cannot be asked; what is known stays in force", source=self.name, what=work, why=why)

    # This node's key --------------------------------------------------------------------------------------------------

    async def _keep(self, etcd: "_Etcd") -> AsyncGenerator[None, None]:
        """Have a key, and keep it alive; yields whenever that has succeeded."""
        while True:
            if self._lease:
                kept = await etcd.ask("lease/keepalive", _KeptAlive, {"ID": self._lease})
                if kept.result.ttl <= 0:
                    log.warning("this node was no member for a while: etcd had not heard of it", source=self.name)
                    self._lease = ""
            if not self._lease or self._wants_key.is_set():
                self._wants_key.clear()
                await self._put(etcd)
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / 3):
                    await self._wants_key.wait()

    async def _put(self, etcd: "_Etcd") -> None:
        lease = self._lease or (await etcd.ask("lease/grant", _Lease, {"TTL": self._lease_s})).lease
        host = self._own.host if self._own.host not in _WILDCARDS else await etcd.own_address()
        place = msgspec.json.encode(_Place(host, self._own.port))
        put = {"key": _base64(self._key(self._own.name)), "value": _base64(place), "lease": lease}
        await etcd.ask("kv/put", dict[str, Any], put)
        self._lease = lease

    async def _leave(self) -> None:
        """Take the key away at once, where etcd can be asked."""
        lease, self._lease = self._lease, ""
        if lease:
            with contextlib.suppress(*_FAILURES):
                async with asyncio.timeout(LEAVE_SECONDS), self._connected(self._address.urls[0]) as etcd:
                    await etcd.ask("lease/revoke", dict[str, Any], {"ID": lease})

    # All keys ---------------------------------------------------------------------------------------------------------

    async def _follow(self, etcd: "_Etcd") -> AsyncGenerator[None, None]:
        """List the members, whenever something has changed and now and then; yields after each listing."""
        first = self._key("")
        bounds = {"key": _base64(first), "range_end": _base64(first[:-1] + bytes([first[-1] + 1]))}
        clock = asyncio.get_running_loop().time
        while True:
            next_at = clock() + LISTINGS_APART_SECONDS
            listed = await etcd.ask("kv/range", _Range, {**bounds, "limit": MOST_MEMBERS})
            self._take(listed)
            yield
            await etcd.watch({**bounds, "start_revision": listed.header.revision + 1})
            await asyncio.sleep(max(0.0, next_at - clock()))

    def _take(self, listed: _Range) -> None:
        members, refused = [], set()
        start = len(self._key(""))
        for each in listed.kvs:
            try:
                name = unquote(b64decode(each.key)[start:].decode(), errors="strict")
                place = msgspec.json.decode(b64decode(each.value), type=_Place)
                members.append(Member(msgspec.convert(name, _Text), place.host, place.port))
            except (ValueError, msgspec.MsgspecError):  # UnicodeDecodeError and binascii.Error are ValueErrors
                refused.add(each.key + each.value)
        for _ in refused - self._refused:
            self.failures += 1
            log.error("a key of etcd is no member's", source=self.name)
        self._refused = frozenset(refused)
        if self._lease and all(member.name != self._own.name for member in members):
            self._wants_key.set()  # somebody has removed it, or etcd was set back
        found = tuple(sorted(members))
        if self.is_behind or found != self._members:
            self.is_behind = False
            self._members = found
            self._is_changed.set()

    def _key(self, name: str) -> bytes:
        return f"{self._address.prefix}/{quote(name, safe='')}".encode()

    # The connection ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connected(self, url: str) -> AsyncIterator["_Etcd"]:
        """Give a server for the time of a ``with`` block, as the address's user where it names one."""
        tls = await asyncio.to_thread(self._tls) if url.startswith("https:") else True
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session:
            etcd = _Etcd(session, url)
            if self._address.user:
                await etcd.authenticate(self._address.user, await asyncio.to_thread(self._password))
            yield etcd

    def _password(self) -> str:
        file = self._credentials.password
        if file is None:
            raise UsageError("peers_etcd names a user: it needs peers_etcd_password_file")
        try:
            return file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(f"peers_etcd_password_file: cannot read {file}: {reason}") from error

    def _tls(self) -> ssl.SSLContext:
        shown = self._credentials
        try:
            context = ssl.create_default_context(cafile=shown.authority)
            if shown.certificate is not None:
                context.load_cert_chain(shown.certificate)
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(f"peers_etcd: certificates cannot be used: {error.strerror or error}") from error
        return context


class _Etcd:
    """One server of etcd, by its JSON gateway; raises what is in ``_FAILURES``."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._headers: dict[str, str] = {}

    async def authenticate(self, user: str, password: str) -> None:
        """Be a user from now on."""
        shown = {"name": user, "password": password}
        self._headers = {"authorization": (await self.ask("auth/authenticate", _Token, shown)).token}

    async def ask(self, path: str, kind: type[T], body: dict[str, Any]) -> T:
        """Return the answer to one request."""
        async with (
            asyncio.timeout(ANSWER_SECONDS),
            self._session.post(f"{self._url}/v3/{path}", json=body, headers=self._headers) as reply,
        ):
            content = await reply.read()
        if reply.status != 200:
            raise _failure(content)
        return msgspec.json.decode(content, type=kind, strict=False)

    async def watch(self, what: dict[str, Any]) -> None:
        """Return when something has changed, or could have without our being told."""
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(WATCH_SECONDS),
                self._session.post(
                    f"{self._url}/v3/watch", json={"create_request": what}, headers=self._headers
                ) as reply,
            ):
                if reply.status != 200:
                    raise _failure(await reply.read())
                begun = msgspec.json.decode(await reply.content.readline(), type=_WatchLine, strict=False)
                if begun.error is not None:
                    raise EtcdFailure(begun.error.message)
                if begun.result is not None and begun.result.canceled and not begun.result.compact_revision:
                    raise EtcdFailure(begun.result.cancel_reason or "it watches no more")
                if begun.result is None or not (begun.result.canceled or begun.result.events):
                    await reply.content.read(1)  # whatever it says next is that something is different

    async def own_address(self) -> str:
        """Return the address that this machine has on its way there; no packet is sent to learn it."""
        parts = urlsplit(self._url)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=(parts.hostname or "", parts.port or 0)
        )
        host: str = transport.get_extra_info("sockname")[0]
        transport.close()
        return host


def _failure(content: bytes) -> EtcdFailure:
    try:
        said = msgspec.json.decode(content, type=_Error, strict=False)
    except msgspec.MsgspecError:
        return EtcdFailure("its answer is none of etcd's JSON gateway")
    return EtcdFailure(said.message or f"error {said.code}")


def _base64(content: bytes) -> str:
    return b64encode(content).decode()
