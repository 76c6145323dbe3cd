"""Replicas come and go, by the manifest's number or by an autoscaler's, and no answer is lost.

The autoscaler is Kubernetes' own, with the HorizontalPodAutoscaler that the operator makes where KEDA is not; the
metric that it follows is simulated.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.integration.operator.apply.images import DECODE_RATE
from tests.integration.operator.apply.simulated_metrics import SimulatedMetrics, simulated_metrics
from tests.integration.operator.apply.test_apply import change, delete
from tests.integration.operator.apply.world import OTHER_INSTANCE_TYPE, NotYetError, World, condition_of, reference

pytestmark = pytest.mark.timeout(400)

NAME = "scaled"
TOKENS_PER_SECOND = 20
SHORT_TOKENS, LONG_TOKENS = 10, 200
"""Long answers outlast what a pod is told of its end, and what is heard of it; short ones are begun all along."""
MOST_LONG_ANSWERS = 12
REQUESTS_METRIC, REQUESTS_PER_REPLICA = "requests-of-scaled", 10
DEPLOYMENT = f"/apis/apps/v1/namespaces/default/deployments/{NAME}"


@dataclass(frozen=True)
class Answered:
    """A chat that was answered: by which pod, and when."""

    address: str
    began: float
    ended: float


@dataclass
class Chats:
    """What is asked of a router while replicas go."""

    url: str
    pool: ThreadPoolExecutor
    answered: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _long: "list[_Long]" = field(default_factory=list)

    def begin_long_ones(self, pods: Sequence[Any]) -> None:
        """Return once each of the pods has a long answer to give."""
        wanted = {pod["status"]["podIP"] for pod in pods}
        while not wanted <= {long.address for long in self._long}:
            assert len(self._long) < MOST_LONG_ANSWERS, "asked in turn, each pod has had its turn by now"
            long = _Long()
            self._long.append(long)
            long.future = self.pool.submit(self.chat, f"long {len(self._long)}", LONG_TOKENS, long)
            assert long.begun.wait(60)

    def end_long_ones(self) -> None:
        """Return once they are over."""
        for long in self._long:
            long.future.result(120)

    def chat(self, prompt: str, tokens: int, long: "_Long | None" = None) -> None:
        """Stream an answer; it is whole when all tokens came, a reason to end, and the end of the stream."""
        began = time.monotonic()
        body = {
            "model": "Llama-3.1-8B-Instruct", "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        events: list[str] = []
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                address = answer.headers["x-tierline-endpoint"].split("://")[-1].rpartition(":")[0]
                for line in answer:
                    if line.startswith(b"data: "):
                        events.append(line.removeprefix(b"data: ").strip().decode())
                    if long is not None:
                        long.address = address
                        long.begun.set()
            assert events[-1] == "[DONE]", events[-1:]
            choices = [json.loads(event)["choices"] for event in events[:-1]]
            assert choices[-1][0]["finish_reason"] == "length", choices[-1]
            assert sum(bool(each[0]["delta"].get("content")) for each in choices if each) == tokens
        except (OSError, AssertionError, ValueError) as error:
            self.failures.append(f"{prompt}: {error!r} after {len(events)} events")
        else:
            self.answered.append(Answered(address, began, time.monotonic()))
        finally:
            if long is not None:
                long.begun.set()


@dataclass
class _Long:
    """A long answer: whose, once it has begun."""

    address: str = ""
    begun: threading.Event = field(default_factory=threading.Event)
    future: "Future[None]" = field(default_factory=Future)


@contextmanager
def chatting(url: str, pods: Sequence[Any]) -> Iterator[Chats]:
    """Have a long answer given by each of the pods, and then short ones all along, from several sides."""
    is_over = threading.Event()
    with ThreadPoolExecutor(MOST_LONG_ANSWERS + 2) as pool:
        chats = Chats(url, pool)

        def asking() -> None:
            while not is_over.is_set():
                chats.chat("short", SHORT_TOKENS)

        chats.begin_long_ones(pods)  # alone, so that each pod has its turn
        asked = [pool.submit(asking) for _ in range(2)]
        try:
            yield chats
        finally:
            is_over.set()
            for each in asked:
                each.result(120)


@pytest.fixture(scope="module")
def scaled(world: World) -> Iterator[str]:
    """An endpoint of three replicas, asked in turn."""
    manifest = reference(name=NAME)
    spec = manifest["spec"]
    del spec["kvCacheSpec"], spec["tlsConfig"]
    spec |= {"instanceType": OTHER_INSTANCE_TYPE, "replicas": 3, "metrics": {"enabled": False}}
    spec["intelligentRoutingSpec"]["routingStrategy"] = "roundrobin"
    spec["worker"]["resources"] = {each: {"nvidia.com/gpu": "1"} for each in ("limits", "requests")}
    spec["worker"]["environmentVariables"].append({"name": DECODE_RATE, "value": str(TOKENS_PER_SECOND)})
    world.apply(manifest)
    world.settled(NAME)
    yield NAME
    delete(world, [("inferenceendpointconfigs", NAME)])


@pytest.fixture(scope="module")
def metrics(world: World) -> Iterator[SimulatedMetrics]:
    with simulated_metrics(world) as metrics:
        yield metrics


def no_answer_is_lost_on_the_way_to_one(world: World, chats: Chats, before: list[Any]) -> None:
    """Wait until of replicas one is left, and look at what became of the answers of those that went."""
    leaving_since = world.until(lambda: all_but_one_are_leaving(world, before))
    chats.end_long_ones()
    [stays] = world.ready_pods(NAME, 1)
    world.until(lambda: only_is_there(world, stays))
    went = {pod["status"]["podIP"] for pod in before} - {stays["status"]["podIP"]}
    assert chats.failures == []
    finished = {each.address for each in chats.answered if each.began < leaving_since < each.ended}
    assert went <= finished, "who was told to end had answers to end, and ended them"


def all_but_one_are_leaving(world: World, before: list[Any]) -> float:
    left = [pod for pod in before if pod["metadata"]["name"] in {each["metadata"]["name"] for each in world.pods(NAME)}]
    if len(left) != 1:
        raise NotYetError([pod["metadata"]["name"] for pod in left])
    return time.monotonic()


def only_is_there(world: World, pod: Any) -> None:
    listed = world.get(f"/api/v1/namespaces/default/pods?labelSelector=app%3D{NAME}")["items"]
    if [each["metadata"]["name"] for each in listed] != [pod["metadata"]["name"]]:
        raise NotYetError([each["metadata"]["name"] for each in listed])


def test_replicas_that_are_taken_away_end_what_they_have_begun(world: World, scaled: str) -> None:
    before = world.ready_pods(scaled, 3)
    with chatting(world.router(scaled), before) as chats:
        world.kubectl("scale", "inferenceendpointconfig", scaled, "--replicas=1")
        no_answer_is_lost_on_the_way_to_one(world, chats, before)
    assert chats.failures == []
    world.until(lambda: has_replicas(world, 1))


def test_an_autoscaler_s_number_stands_and_no_answer_is_lost_when_it_falls(
    world: World, scaled: str, metrics: SimulatedMetrics
) -> None:
    metrics.values[REQUESTS_METRIC] = 3 * REQUESTS_PER_REPLICA
    trigger = {
        "name": REQUESTS_METRIC, "query": "sum(requests)", "serverAddress": "http://prometheus:9090",
        "targetValue": REQUESTS_PER_REPLICA,
    }  # fmt: skip
    autoscaling = {"maxReplicaCount": 3, "scaleDownStabilizationTime": 0, "prometheusTrigger": trigger}
    change(world, scaled, {"autoScalingSpec": autoscaling})
    before = world.ready_pods(scaled, 3)
    world.until(lambda: has_replicas(world, 3))
    world.until(lambda: is_scaled_by_its_autoscaler(world))

    generation = world.get(DEPLOYMENT)["metadata"]["generation"]
    change(world, scaled, {"replicas": 2})
    world.kubectl("annotate", "inferenceendpointconfig", scaled, "tierline.ai/rollout-strategy=surge")
    world.settled(scaled)
    deployment = world.until(lambda: has_strategy(world, {"maxSurge": 1, "maxUnavailable": 0}))
    assert deployment["spec"]["replicas"] == 3
    assert deployment["metadata"]["generation"] == generation + 1, "nor were they others for a moment"

    with chatting(world.router(scaled), before) as chats:
        metrics.values[REQUESTS_METRIC] = REQUESTS_PER_REPLICA
        no_answer_is_lost_on_the_way_to_one(world, chats, before)
    assert chats.failures == []
    world.until(lambda: has_replicas(world, 1))


def has_replicas(world: World, wanted: int) -> None:
    """Look whether the endpoint is ready, and says that it has so many."""
    if (said := world.settled(NAME)["status"]["replicas"]) != wanted:
        raise NotYetError(said)


def is_scaled_by_its_autoscaler(world: World) -> None:
    condition = condition_of(world.endpoint(NAME), "AutoscalingReady")
    if condition.get("status") != "True":
        raise NotYetError(condition)


def has_strategy(world: World, wanted: dict[str, int]) -> Any:
    deployment = world.get(DEPLOYMENT)
    if deployment["spec"]["strategy"]["rollingUpdate"] != wanted:
        raise NotYetError(deployment["spec"]["strategy"])
    return deployment
