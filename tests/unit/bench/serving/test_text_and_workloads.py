"""Plans: what is shared is shared in text, what is cold begins like nothing else, who waits waits for its prefix."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.serving.clients import shares
from tierline.bench.serving.plan import Planned, write_messages
from tierline.bench.serving.text import Piece, write
from tierline.bench.serving.workloads import DIFFERENT_PREFIXES, SAME_PREFIX, Shape, default_turns, plan
from tierline.errors import ConfigurationError

NAMES = ("documents", "code", "chats", "templates", "agents", "independent", "prefixes")
ANSWER = "\n" + "- " * 20
KINDS = ("contract", "code", "talk", "question", "review", "tool", "answer")


def shape(name: str, requests: int = 60) -> Shape:
    return Shape(requests=requests, input_tokens=4000, output_tokens=20, turns=default_turns(name))


def prompts(planned: list[Planned], salt: str = "s") -> dict[int, str]:
    """Whole prompts, with answers that say nothing."""
    texts: dict[int, str] = {}
    for each in planned:
        own = "\n".join(message["content"] for message in write_messages(each, salt, 1.0))
        texts[each.index] = f"{texts[each.after]}{ANSWER}{own}" if each.goes_on and each.after is not None else own
    return texts


def common_words(first: str, second: str) -> int:
    pairs = zip(first.split(), second.split(), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@given(st.sampled_from(KINDS), st.integers(1, 3000), st.floats(0.7, 3.0))
def test_text_is_as_long_as_asked_for_and_the_same_for_the_same_seed(kind: str, tokens: int, rate: float) -> None:
    piece = Piece(kind, "seed", tokens)  # type: ignore[arg-type]

    text = write(piece, "salt", rate)

    assert len(text.split()) == max(1, round(tokens / rate))
    assert text == write(piece, "salt", rate)


@given(st.sampled_from(KINDS), st.text(max_size=5), st.text(max_size=5))
def test_text_of_another_seed_or_salt_differs_from_its_first_word_on(kind: str, seed: str, salt: str) -> None:
    piece = Piece(kind, seed, 30)  # type: ignore[arg-type]
    first = write(piece, salt, 1.0).split()[0]

    assert write(Piece(piece.kind, f"{seed}+", 30), salt, 1.0).split()[0] != first
    assert write(piece, f"{salt}+", 1.0).split()[0] != first


@pytest.mark.parametrize("name", NAMES)
def test_prompts_have_their_planned_length_and_none_is_longer_than_the_context(name: str) -> None:
    planned = plan(name, shape(name))

    assert [each.index for each in planned] == list(range(60))
    assert all(0 < each.input_tokens <= 4000 for each in planned)
    assert max(each.input_tokens for each in planned) > 3500
    for each in planned:
        if not each.goes_on:
            assert sum(message.tokens for message in each.messages) == each.input_tokens


@pytest.mark.parametrize("name", NAMES)
def test_what_a_request_is_said_to_know_the_one_it_waits_for_has_had(name: str) -> None:
    planned = plan(name, shape(name))
    texts = prompts(planned)

    for each in planned:
        assert (each.known_tokens > 0) == (each.after is not None)
        if each.after is None:
            continue
        assert each.after < each.index
        assert planned[each.after].family == each.family
        assert common_words(texts[each.index], texts[each.after]) >= min(
            each.known_tokens, planned[each.after].input_tokens
        )


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_different_families_differ_from_their_first_word_on(name: str) -> None:
    planned = plan(name, shape(name))
    texts = prompts(planned)
    first_words = {(each.family, texts[each.index].split()[0]) for each in planned}

    families = {each.family for each in planned}
    assert len(first_words) == len({word for _, word in first_words}) == len(families)


def test_a_chat_says_all_that_was_said_before_and_grows_to_its_context() -> None:
    chats = plan("chats", Shape(requests=40, input_tokens=2000, output_tokens=20, turns=20))

    assert [each.after for each in chats[:3]] == [None, 0, 1]
    assert [each.goes_on for each in chats[:3]] == [False, True, True]
    assert chats[19].input_tokens > 1900
    assert chats[20].after is None
    assert [each.is_cold for each in chats[:3]] == [True, False, False]


def test_prefixes_come_in_turn_and_only_the_same_one_is_known() -> None:
    planned = plan("prefixes", shape("prefixes", requests=10))

    assert [each.group for each in planned] == [SAME_PREFIX, DIFFERENT_PREFIXES] * 5
    assert [each.is_cold for each in planned] == [True, True] + [False, True] * 4


@pytest.mark.parametrize(("name", "tokens"), [("documents", 32), ("chats", 200), ("agents", 300), ("templates", 5)])
def test_a_context_that_holds_no_prompt_is_a_users_mistake(name: str, tokens: int) -> None:
    with pytest.raises(ConfigurationError, match="--input-len"):
        plan(name, Shape(requests=4, input_tokens=tokens, output_tokens=20, turns=default_turns(name)))


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'songs'"):
        plan("songs", shape("documents"))


@given(st.sampled_from(NAMES), st.integers(1, 50), st.integers(1, 7))
def test_clients_share_all_requests_and_an_answer_is_where_it_is_waited_for(
    name: str, count: int, clients: int
) -> None:
    planned = plan(name, shape(name, requests=count))

    dealt = shares(planned, clients)

    assert sorted(each.index for share in dealt for each in share) == list(range(count))
    for share in dealt:
        indices = {each.index for each in share}
        assert all(each.after is None or each.after in indices for each in share)
