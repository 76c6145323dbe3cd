"""Waiting until nothing of an endpoint is left."""

import pytest

from tierline.errors import ClusterUnavailable
from tierline.operator.endpoints import removal


async def test_an_api_that_is_away_for_a_moment_ends_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_POLL_S", 0)
    answers: list[list[str] | None] = [["Pod a/b"], None, ["Pod a/b"], []]
    told: list[list[str]] = []

    async def left() -> list[str]:
        answer = answers.pop(0)
        if answer is None:
            raise ClusterUnavailable("the Kubernetes API did not answer in time")
        return answer

    await removal.until_gone(left, 60, lambda found: told.append(list(found)))
    said = "what the API does not tell (the Kubernetes API did not answer in time)"
    assert told == [["Pod a/b"], [said], ["Pod a/b"]]
