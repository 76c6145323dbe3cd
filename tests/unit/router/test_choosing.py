"""Which strategy chooses: of models and adapters, on trial, and none that knows of caches."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.router.choosing import Arm, Choosing, Rule
from tierline.router.config import RouterConfig
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.prompt import BLOCK_BYTES, read_fields
from tierline.router.strategies import RoutingRequest, Strategy
from tierline.router.strategies.kvaware import KvAware
from tierline.router.strategies.leastload import LeastLoad
from tierline.router.strategies.prefixaware import PrefixAware
from tierline.router.strategies.session import SessionAffinity

SYSTEM = {"role": "system", "content": "You are a helpful assistant. " * 100}
MODELS = ("llama", "qwen", "sql")


def some_endpoints(count: int = 3) -> Endpoints:
    """Return endpoints that serve two models and an adapter of the first."""
    endpoints = Endpoints([f"http://host-{number}:8000" for number in range(count)])
    cards = {name: json.dumps({"id": name}).encode() for name in MODELS}
    cards["sql"] = b'{"id": "sql", "parent": "llama"}'
    for endpoint in endpoints.all:
        endpoint.learn_models(cards)
    return endpoints


def configured(endpoints: Endpoints | None = None, **settings: object) -> Choosing:
    config = RouterConfig.model_validate({"endpoints": ["http://host-0:8000"], **settings})
    return Choosing.of(config, endpoints or some_endpoints())


def ask(model: str = "llama", *, session: bytes = b"", **body: object) -> RoutingRequest:
    body = body or {"prompt": "Once upon a time"}
    return RoutingRequest(read_fields(msgspec.json.encode({"model": model, **body})), session)


def prompt(text: str, blocks: int = 4) -> dict[str, Any]:
    return {"prompt": (text * BLOCK_BYTES * blocks)[: BLOCK_BYTES * blocks]}


def route(arm: Arm, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Endpoint:
    decision = arm.strategy.choose(request, endpoints)
    arm.strategy.placed(request, decision)
    return decision.endpoint


# Models and adapters --------------------------------------------------------------------------------------------------


def test_with_nothing_configured_one_strategy_chooses_for_everybody() -> None:
    choosing = configured()
    arms = {choosing.arm_of(ask(model, session=b"s")) for model in (*MODELS, "unknown", "")}
    assert [(arm.strategy.name, arm.name, arm.model) for arm in arms] == [("prefixaware", "main", "")]


def test_a_model_has_its_strategy_and_so_have_its_adapters_unless_they_have_one_of_their_own() -> None:
    def names(choosing: Choosing) -> list[str]:
        return [choosing.arm_of(ask(model)).strategy.name for model in MODELS]

    assert names(configured(models=["llama=session"])) == ["session", "prefixaware", "session"]
    assert names(configured(models=["sql=leastload"])) == ["prefixaware", "prefixaware", "leastload"]
    assert names(configured(models=["llama=session", "sql=roundrobin"])) == ["session", "prefixaware", "roundrobin"]


def test_models_with_a_rule_share_no_index() -> None:
    choosing = configured(models={"qwen": {"strategy": "prefixaware", "index_bytes": "128KiB"}})
    endpoints = some_endpoints().all
    route(choosing.arm_of(ask("qwen")), ask("qwen", **prompt("a")), endpoints)
    lengths = [len(strategy.index) for strategy in choosing.strategies if isinstance(strategy, PrefixAware)]
    assert lengths == [0, 4]
    assert choosing.index_placements == 4


def test_an_adapters_prompt_is_cold_where_its_models_is_known() -> None:
    choosing, endpoints = configured(), some_endpoints().all
    route(choosing.arm_of(ask()), ask("llama", **prompt("a")), endpoints)
    for model, matched in (("llama", 4), ("sql", 0), ("qwen", 0)):
        request = ask(model, **prompt("a"))
        assert choosing.arm_of(request).strategy.choose(request, endpoints).best_blocks == matched


def test_all_strategies_that_follow_events_read_one_index() -> None:
    choosing = configured(models=["qwen=kvaware", "sql=kvaware"], strategy="prefixaware")
    first, second = (strategy for strategy in choosing.strategies if isinstance(strategy, KvAware))
    assert choosing.kvaware is first
    assert (first.blocks, first.sources, first.lookups) == (second.blocks, second.sources, second.lookups)
    assert first.blocks is second.blocks
    assert first.index is not second.index
    assert [choosing.arm_of(ask(model)).needs_tokens for model in MODELS] == [False, True, True]


def test_what_becomes_of_an_endpoint_is_told_to_every_strategy() -> None:
    choosing = configured(models=["qwen=prefixaware"], ab_strategy="prefixaware", ab_share=0.5)
    endpoints = some_endpoints(1).all
    for arm in choosing.arms:
        route(arm, ask(arm.model, **prompt("a")), endpoints)
    choosing.forget(endpoints[0])
    assert choosing.index_placements == 0


# A trial --------------------------------------------------------------------------------------------------------------


def trial(share: float, main: str = "prefixaware", other: str = "session") -> Choosing:
    return configured(strategy=main, ab_strategy=other, ab_share=share)


@given(st.floats(0.02, 0.98), st.integers(0, 2**32))
def test_a_trial_gets_its_share_of_sessions(share: float, salt: int) -> None:
    choosing, count = trial(share), 2000
    sessions = [f"{salt}-{number}".encode() for number in range(count)]
    got = sum(choosing.arm_of(ask(session=session)).name == "trial" for session in sessions)
    assert abs(got - share * count) < 6 * (share * (1 - share) * count) ** 0.5


@given(st.binary(min_size=1), st.text(), st.text(), st.floats(0.01, 1))
def test_a_session_stays_in_its_arm_whatever_it_asks(session: bytes, one: str, other: str, share: float) -> None:
    choosing, again = trial(share), trial(share)
    arms = [
        of.arm_of(ask(session=session, prompt=text), request_id)
        for of, text, request_id in ((choosing, one, b"1"), (again, other, b"2"))
    ]
    assert arms[0].name == arms[1].name


@given(st.binary(min_size=1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_takes_requests_to_the_trial_and_none_back(session: bytes, one: float, other: float) -> None:
    small, large = (trial(share).arm_of(ask(session=session)).name for share in sorted((one, other)))
    assert (small, large) != ("trial", "main")


@given(st.text(min_size=1), st.lists(st.text(), max_size=4), st.booleans())
def test_all_turns_of_a_conversation_are_in_one_arm(question: str, turns: list[str], has_system: bool) -> None:
    choosing = trial(0.5)
    messages = [*([SYSTEM] if has_system else []), {"role": "user", "content": question}]
    first = choosing.arm_of(ask(messages=messages), b"id")
    for number, turn in enumerate(turns):
        messages += [{"role": "assistant", "content": turn}, {"role": "user", "content": turn}]
        assert choosing.arm_of(ask(messages=messages, tools=[{"number": number}]), b"%d" % number) is first


def test_conversations_that_share_a_system_prompt_are_in_both_arms() -> None:
    choosing = trial(0.5)
    asked = [[SYSTEM, {"role": "user", "content": f"question {number}"}] for number in range(50)]
    assert {choosing.arm_of(ask(messages=messages)).name for messages in asked} == {"main", "trial"}


def test_a_prompt_that_is_no_chat_counts_by_its_first_kib_and_without_one_the_requests_id_does() -> None:
    choosing = trial(0.5)
    for letter in "abcdefgh":
        arms = {choosing.arm_of(ask(prompt=letter * 1024 + more), b"id") for more in ("", "x", "y" * 5000)}
        assert len(arms) == 1
    without_prompt = RoutingRequest(read_fields(b'{"model": "llama"}'))
    assert len({choosing.arm_of(without_prompt, b"%d" % number) for number in range(50)}) == 2


def test_a_prompt_that_is_known_by_its_blocks_stays_in_its_arm_as_it_grows() -> None:
    choosing, blocks = trial(0.5), list(range(100, 120))
    arms = {choosing.arm_of(RoutingRequest.of_blocks(blocks[:n], session=b"", now=0.0)) for n in range(4, 20)}
    assert len(arms) == 1


def test_an_arm_is_no_set_of_endpoints() -> None:
    choosing, endpoints = trial(0.5, main="session", other="session"), some_endpoints(4).all
    seen = set()
    for number in range(200):
        request = ask(session=b"%d" % number)
        arm = choosing.arm_of(request)
        seen.add((arm.name, arm.strategy.choose(request, endpoints).endpoint.url))
    assert len(seen) == 8


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.booleans(), st.booleans()), max_size=20))
def test_both_arms_know_where_every_prompt_went(sent: list[tuple[str, bool, bool]]) -> None:
    one, other = PrefixAware(3, 2**20), PrefixAware(3, 2**20)
    rule, endpoints = Rule(one, trial=other, share=0.5), some_endpoints().all
    assert rule.trial is not None
    for text, is_trial, is_served in sent:
        arm, request = rule.trial if is_trial else rule.main, ask(**prompt(text))
        decision = arm.strategy.choose(request, endpoints)
        arm.strategy.placed(request, decision)
        if not is_served:
            arm.strategy.withdrawn(request, decision)
    for text, _, _ in sent:
        request = ask(**prompt(text))
        assert one.held(request, endpoints) == other.held(request, endpoints)
    assert len(one.index) == len(other.index)


def test_a_strategy_learns_from_an_arm_that_knows_nothing_of_prompts_and_unlearns_what_was_not_served() -> None:
    rule, endpoints = Rule(PrefixAware(3, 2**20), trial=SessionAffinity(), share=0.5), some_endpoints().all
    assert rule.trial is not None
    request = ask(session=b"s", **prompt("a"))
    decision = rule.trial.strategy.choose(request, endpoints)
    rule.trial.strategy.placed(request, decision)
    known = rule.main.strategy.choose(request, endpoints)
    assert (known.endpoint, known.matched_blocks) == (decision.endpoint, 4)
    rule.trial.strategy.withdrawn(request, decision)
    assert rule.main.strategy.choose(request, endpoints).best_blocks == 0


def test_what_the_other_arm_could_not_have_served_leaves_all_that_was_known_of_a_long_prompt() -> None:
    one = PrefixAware(3, 2**20)
    rule, endpoints = Rule(one, trial=SessionAffinity(), share=0.5), some_endpoints().all
    assert rule.trial is not None
    for length in (201, 301):  # whose ends lie within the part of a long prompt that choosing looks at together
        request = ask(session=b"s", prompt="".join(f"{number:256}" for number in range(length)))
        decision = rule.trial.strategy.choose(request, endpoints)
        rule.trial.strategy.placed(request, decision)
    rule.trial.strategy.withdrawn(request, decision)
    assert one.index.known(request.blocks) == 201


def test_a_strategy_that_knows_nothing_of_prompts_is_told_of_no_other_choice() -> None:
    rule, endpoints = Rule(PrefixAware(3, 2**20), trial=LeastLoad(), share=0.5), some_endpoints().all
    request = ask(**prompt("a"))
    assert rule.main.strategy.choose(request, endpoints).observed is None


# Turned off -----------------------------------------------------------------------------------------------------------


def in_force(choosing: Choosing) -> list[str]:
    return [choosing.arm_of(ask(model)).strategy.name for model in MODELS]


def test_affinity_turned_off_leaves_only_the_load() -> None:
    choosing = configured(models=["qwen=session"])
    choosing.turn_off()
    assert in_force(choosing) == ["leastload"] * 3
    assert {choosing.arm_of(ask(model)).name for model in MODELS} == {"off"}
    choosing.turn_on()
    assert in_force(choosing) == ["prefixaware", "session", "prefixaware"]


def test_it_can_be_turned_off_for_one_model_and_its_adapters() -> None:
    choosing = configured()
    choosing.turn_off("llama")
    assert in_force(choosing) == ["leastload", "prefixaware", "leastload"]
    choosing.turn_off()
    choosing.turn_on()
    assert in_force(choosing) == ["leastload", "prefixaware", "leastload"], "each name is turned on by itself"
    choosing.turn_on("llama")
    assert in_force(choosing) == ["prefixaware"] * 3


def test_where_there_is_no_affinity_nothing_is_turned_off() -> None:
    choosing = configured(strategy="roundrobin", models=["qwen=leastload"], ab_strategy="session", ab_share=1.0)
    choosing.turn_off()
    assert (choosing.arm_of(ask("qwen")).name, choosing.arm_of(ask(session=b"s")).name) == ("main", "off")


def test_a_request_that_has_its_arm_already_changes_to_the_one_in_force() -> None:
    choosing = configured()
    arm = choosing.arm_of(ask())
    assert choosing.in_force(arm, "llama") is arm
    choosing.turn_off("llama")
    assert choosing.in_force(arm, "llama").name == "off"
    assert choosing.in_force(arm, "qwen") is arm


def test_what_was_known_when_it_was_turned_off_is_not_believed_afterwards() -> None:
    endpoints = some_endpoints()
    choosing = configured(endpoints, models=["qwen=prefixaware"])
    for model in ("llama", "qwen"):
        route(choosing.arm_of(ask(model)), ask(model, **prompt("a")), endpoints.all)
    choosing.turn_off("qwen")
    choosing.turn_on("qwen")
    assert choosing.index_placements == 4, "the other's is kept"
    choosing.turn_off()
    choosing.turn_on()
    assert choosing.index_placements == 0


def test_the_configuration_can_start_it_turned_off() -> None:
    assert in_force(configured(affinity=False)) == ["leastload"] * 3
    models = {"qwen": {"strategy": "session", "affinity": False}}
    assert in_force(configured(models=models)) == ["prefixaware", "leastload", "prefixaware"]


def test_its_state_names_shares_and_what_is_turned_off() -> None:
    choosing = configured(models=["qwen=session"], ab_strategy="leastload", ab_share=0.25)
    choosing.turn_off()
    assert choosing.turned_off == [""]
    assert [(state.model, state.arm, state.strategy, state.share) for state in choosing.states()] == [
        ("", "trial", "leastload", 0.25),
        ("", "off", "leastload", 0.75),
        ("qwen", "off", "leastload", 1.0),
    ]


def test_a_request_without_affinity_is_no_strategys() -> None:
    choosing = configured(models=["llama=session"])
    arm = choosing.without_affinity(ask("sql"))
    assert (arm.model, arm.name, arm.strategy.name) == ("llama", "bypass", "leastload")


@pytest.mark.parametrize("strategy", [PrefixAware(1, 2**20), SessionAffinity(), LeastLoad()])
def test_an_arm_says_who_it_is(strategy: Strategy) -> None:
    fields = Rule(strategy, "m").main.fields
    assert fields == b"x-tierline-strategy: %b\r\nx-tierline-arm: main\r\n" % strategy.name.encode()
