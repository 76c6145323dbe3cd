"""The operator asks a hub that speaks Hugging Face's API which commit a model is."""

from dataclasses import replace
from typing import Any

import pytest
from tests.endpoints import endpoint
from tests.integration.fetch.hub import hub

from tierline.errors import ClusterRefused
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import commits
from tierline.operator.commits import LEFT_ALONE_SECONDS, HubCommits
from tierline.operator.endpoint import Endpoint


class Secrets(Cluster):
    """Holds one, or lets nobody read it."""

    def __init__(self, data: dict[str, str] | None = None) -> None:
        super().__init__(None, "tests")
        self._data = data

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any] | None:
        assert (kind.name, namespace, name) == ("Secret", "default", "hub")
        if self._data is None:
            raise ClusterRefused("forbidden", 403)
        return {"data": self._data}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def of_the_hub(**model: Any) -> Endpoint:
    source = {"modelSourceType": "huggingface", "huggingFaceModel": {"modelId": "org/model", **model}}
    return endpoint({"modelSourceConfig": source})


GATED = of_the_hub(tokenSecretRef={"name": "hub", "key": "token"})


async def test_the_hub_is_asked_once_for_each_generation() -> None:
    async with hub({}) as fake:
        known = HubCommits(Secrets(), fake.url, Clock())
        first = fake.commit
        assert await known.of(of_the_hub()) == first
        fake.commit = "b" * 40
        assert await known.of(of_the_hub()) == first
        assert await known.of(replace(of_the_hub(), generation=2)) == "b" * 40
        assert fake.asked == 2
        known.forget(of_the_hub().uid)
        await known.of(replace(of_the_hub(), generation=2))
        assert fake.asked == 3


async def test_nothing_is_asked_of_models_that_say_their_commit_or_come_from_elsewhere() -> None:
    async with hub({}) as fake:
        known = HubCommits(Secrets(), fake.url, Clock())
        assert await known.of(of_the_hub(commitSHA="e" * 40)) is None
        assert await known.of(endpoint()) is None
        assert fake.asked == 0


async def test_a_gated_repository_is_asked_for_with_the_token_of_its_secret() -> None:
    async with hub({}, token="secret") as fake:
        assert await HubCommits(Secrets({"token": "c2VjcmV0Cg=="}), fake.url, Clock()).of(GATED) == fake.commit
        assert await HubCommits(Secrets({}), fake.url, Clock()).of(GATED) is None
        assert await HubCommits(Secrets(), fake.url, Clock()).of(GATED) is None
        assert fake.asked == 3


async def test_a_hub_that_does_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with hub({}) as fake:
        known = HubCommits(Secrets(), fake.url, clock)
        monkeypatch.setattr(commits, "ANSWER_SECONDS", 0.0)
        assert await known.of(of_the_hub()) is None
        monkeypatch.undo()
        assert await known.of(of_the_hub()) is None
        assert fake.asked == 0
        clock.now = LEFT_ALONE_SECONDS
        assert await known.of(of_the_hub()) == fake.commit


async def test_what_the_hub_refuses_keeps_nobody_else_from_asking() -> None:
    async with hub({}) as fake:
        known = HubCommits(Secrets(), fake.url, Clock())
        assert await known.of(of_the_hub(modelId="org/unknown")) is None
        assert await known.of(of_the_hub()) == fake.commit
