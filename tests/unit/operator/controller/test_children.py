"""What was written and what watches show, in whichever order they come."""

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import msgspec

from tierline.errors import ClusterRefused
from tierline.kube.cluster import Kind
from tierline.operator import names
from tierline.operator.controller.children import UNSEEN_SECONDS, Children
from tierline.operator.controller.live import kind_of

OWNER = "uid-of-the-owner"
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "demo",
        "namespace": "default",
        "labels": {names.MANAGED_BY: names.FIELD_MANAGER, names.OWNER_UID: OWNER},
    },
}


class Answer:
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self) -> bytes:
        return self._content


class ApiWithFastWatch:
    """Shows what is written, and where a test says so that it has gone, before it answers who writes."""

    def __init__(self) -> None:
        self.children: Children | None = None
        self.writes = 0
        self.is_deleted_at_once = False

    @contextlib.asynccontextmanager
    async def answer(self, method: str, path: str, *, body: Any = None, **_: object) -> AsyncIterator[Answer]:
        if method == "GET":
            raise ClusterRefused("there is none", HTTPStatus.NOT_FOUND)
        self.writes += 1
        who = [{"manager": names.FIELD_MANAGER, "operation": "Apply"}]
        of_the_api = {"uid": "1", "resourceVersion": "7", "managedFields": who}
        written = msgspec.json.encode({**body, "metadata": {**body["metadata"], **of_the_api}})
        assert self.children is not None
        live = msgspec.json.decode(written, type=kind_of("Service"))
        self.children.seen("1", None, live)
        if self.is_deleted_at_once:
            self.children.seen("1", live, None)
        yield Answer(written)


async def test_what_a_watch_showed_before_the_write_was_answered_is_not_written_again() -> None:
    now = [0.0]
    api = ApiWithFastWatch()
    api.children = children = Children(api, lambda _: None, lambda: now[0])  # type: ignore[arg-type]
    children.served = {("v1", "Service"): Kind("v1", "Service", "services", is_namespaced=True)}
    await children.bring(OWNER, SERVICE)
    now[0] += 2 * UNSEEN_SECONDS
    await children.bring(OWNER, SERVICE)
    assert api.writes == 1


async def test_what_a_watch_showed_to_be_gone_before_the_write_was_answered_is_made_again() -> None:
    told: list[str] = []
    api = ApiWithFastWatch()
    api.children = children = Children(api, told.append, lambda: 0.0)  # type: ignore[arg-type]
    children.served = {("v1", "Service"): Kind("v1", "Service", "services", is_namespaced=True)}
    await children.bring(OWNER, SERVICE)
    changed = {**SERVICE, "spec": {"selector": {"app": "demo"}}}
    api.is_deleted_at_once = True
    told.clear()
    await children.bring(OWNER, changed)
    assert not children.of(OWNER)
    assert OWNER in told, "it is looked at again"
    api.is_deleted_at_once = False
    await children.bring(OWNER, changed)
    assert api.writes == 3
    assert children.of(OWNER)
