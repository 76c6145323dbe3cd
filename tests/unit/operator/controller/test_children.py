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
    """Shows what is written to whoever watches before it answers who writes."""

    def __init__(self) -> None:
        self.children: Children | None = None
        self.writes = 0

    @contextlib.asynccontextmanager
    async def answer(self, method: str, path: str, *, body: Any = None, **_: object) -> AsyncIterator[Answer]:
        if method == "GET":
            raise ClusterRefused("there is none", HTTPStatus.NOT_FOUND)
        self.writes += 1
        who = [{"manager": names.FIELD_MANAGER, "operation": "Apply"}]
        of_the_api = {"uid": "1", "resourceVersion": "7", "managedFields": who}
        written = msgspec.json.encode({**body, "metadata": {**body["metadata"], **of_the_api}})
        assert self.children is not None
        self.children.seen("1", None, msgspec.json.decode(written, type=kind_of("Service")))
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
