"""The description of a running stack, and how other programs ask its supervisor for a restart.

``tierline up`` writes ``stack.json`` into its state folder once every child is ready and removes it when it stops.
"""

import http.client
import os
import socket
from pathlib import Path
from typing import TypeVar

import msgspec

from tierline.errors import EngineError
from tierline.stack.folders import state_folder

DESCRIPTION = "stack.json"

_RESTART_TIMEOUT_S = 900.0


class RunningChild(msgspec.Struct, frozen=True):
    """A process of the stack."""

    name: str
    url: str
    pid: int
    log: Path


class RunningNode(RunningChild, frozen=True):
    """A node store; ``socket`` is where engines join it."""

    socket: Path


class RunningReplica(RunningChild, frozen=True):
    """A replica; ``node`` is the name of the node store that it is joined to, empty without one."""

    node: str


class RunningStack(msgspec.Struct, frozen=True, kw_only=True):
    """What ``tierline up`` runs.

    Parameters
    ----------
    pid
        The supervisor.
    control
        UNIX socket that takes restarts.
    model
        The ``model`` of requests.
    model_folder
        Where its weights are; ``None`` for a simulated engine.
    engine
        ``vllm`` or ``simulated``; ``external`` in front of servers that ran already.
    strategy
        The router's.
    has_dev_mode
        Whether the engines take ``POST /reset_prefix_cache``.
    cache_bytes
        Size of each node store's segment; 0 without one.
    connector
        What joins the replicas to the node stores.
    router, nodes, caches, replicas
        The processes; several nodes are one pool. ``caches`` are LMCache's servers, one for each replica, where it
        joins them. Servers that ran already have no process of ours and are not among the replicas.
    """

    pid: int
    control: Path
    model: str | None
    model_folder: Path | None
    engine: str
    strategy: str
    connector: str
    has_dev_mode: bool
    cache_bytes: int
    router: RunningChild
    nodes: list[RunningNode]
    caches: list[RunningChild]
    replicas: list[RunningReplica]

    @property
    def node(self) -> RunningNode | None:
        """The first node store; ``None`` without one."""
        return self.nodes[0] if self.nodes else None


Described = TypeVar("Described", RunningStack, RunningReplica)


def encode(described: RunningStack | RunningReplica) -> bytes:
    """Return the JSON of a stack or of one of its children."""
    return msgspec.json.encode(described, enc_hook=str)  # paths


def decode(json: bytes, kind: type[Described]) -> Described:
    """Return what :func:`encode` wrote."""
    return msgspec.json.decode(json, type=kind, dec_hook=lambda path, text: path(text))


def stack_folder(port: int) -> Path:
    """Return the state folder of the stack whose router listens on ``port``."""
    return state_folder() / f"up-{port}"


def find_stack(port: int = 8000) -> RunningStack | None:
    """Return the stack whose router listens on ``port``; ``None`` when none is ready there."""
    try:
        stack = decode((stack_folder(port) / DESCRIPTION).read_bytes(), RunningStack)
        os.kill(stack.pid, 0)
    except (FileNotFoundError, ProcessLookupError):  # the latter: it was killed and could not tidy up
        return None
    return stack


def restart_replica(stack: RunningStack, index: int) -> RunningReplica:
    """Stop ``stack.replicas[index]`` and its LMCache server, start them again, and return it once it is ready.

    What only they remembered is gone; the node store is not touched.

    Raises
    ------
    EngineError
        When it did not come up, or the supervisor is gone.
    """
    connection = http.client.HTTPConnection("localhost", timeout=_RESTART_TIMEOUT_S)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(_RESTART_TIMEOUT_S)
        connection.sock.connect(str(stack.control))
        connection.request("POST", f"/replicas/{index}/restart")
        response = connection.getresponse()
        body = response.read()
    except OSError as error:
        raise EngineError(f"the supervisor (pid {stack.pid}) does not answer on {stack.control}: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise EngineError(f"replica {index} was not restarted: {body.decode(errors='replace')}")
    return decode(body, RunningReplica)
